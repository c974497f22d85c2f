"""Pixel shards: memory-mapped Arrow files of fixed-size images with their image ids."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from ral.data.dataset_info import Shard


class _HashingFile:
    """A file that is hashed while it is written, so that it need not be read again."""

    closed = False

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb", buffering=0)
        self.digest = hashlib.sha256()

    def write(self, block: bytes | memoryview) -> int:
        self.digest.update(block)
        rest = memoryview(block)
        while rest:  # a write may be partial
            rest = rest[self._file.write(rest) :]
        return len(block)

    def flush(self) -> None:
        """Nothing is buffered."""

    def close(self) -> None:
        self._file.close()
        self.closed = True


def write_shard(path: Path, image_ids: list[str], images: np.ndarray) -> str:
    """Write a shard: one Arrow IPC record batch with image_id and pixels.

    Args:
        path: file to write.
        image_ids: one per row.
        images: uint8 [rows, size, size].

    Returns:
        SHA-256 of the file.

    Raises:
        OSError: the disk is full, or not writable.
    """
    rows, height, width = images.shape
    pixels = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(height * width), rows, [None, pa.py_buffer(np.ascontiguousarray(images))]
    )
    batch = pa.record_batch([pa.array(image_ids, pa.string()), pixels], names=["image_id", "pixels"])
    file = _HashingFile(path)
    with pa.PythonFile(file, "w") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return file.digest.hexdigest()


def open_shard(path: Path, size: int) -> tuple[pa.StringArray, np.ndarray]:
    """Memory-map a shard.

    Returns:
        The image ids, and the pixels, read-only uint8 [rows, size, size]; both are views of the file, without a copy.
    """
    batch = pa.ipc.open_file(pa.memory_map(str(path), "r")).get_batch(0)
    pixels = np.frombuffer(batch.column("pixels").buffers()[1], np.uint8)
    return batch.column("image_id"), pixels.reshape(batch.num_rows, size, size)


def same_pixels(shards: Sequence[Path], size: int, sums: np.ndarray) -> pd.Series:
    """Find packed images with identical pixels.

    Args:
        shards: the shards, in order.
        size: height and width of an image.
        sums: int64 [images, 2], sum of the pixels and of their squares; pixels are read only if both are equal.

    Returns:
        SHA-256 of the pixels by row number, for images that have a duplicate.
    """
    suspects = np.flatnonzero(pd.DataFrame(sums).duplicated(keep=False).to_numpy())
    digests: dict[int, str] = {}
    first = 0
    for path in shards if len(suspects) else ():
        _, images = open_shard(path, size)
        in_shard = suspects[(suspects >= first) & (suspects < first + len(images))]
        digests |= {int(row): hashlib.sha256(images[row - first].tobytes()).hexdigest() for row in in_shard}
        first += len(images)
    hashes = pd.Series(digests, dtype="str")
    return hashes[hashes.duplicated(keep=False)]


def drop_images(folder: Path, shards: Sequence[Shard], stays: np.ndarray, size: int) -> list[Shard]:
    """Rewrite shards without some of their images; a shard that loses all of them is removed.

    Args:
        folder: folder of the shards.
        shards: the shards, in order.
        stays: for each of their images, whether it stays, bool.
        size: height and width of an image.

    Returns:
        The remaining shards.
    """
    remaining, first = [], 0
    for shard in shards:
        path, rows = folder / shard.name, np.flatnonzero(stays[first : first + shard.images])
        first += shard.images
        if len(rows) == shard.images:
            remaining.append(shard)
            continue
        ids, images = open_shard(path, size)
        names, pixels = ids.take(pa.array(rows)).to_pylist(), images[rows]
        path.unlink()
        if len(rows):
            digest = write_shard(path, names, pixels)
            remaining.append(Shard(name=shard.name, images=len(rows), sha256=digest))
    return remaining
