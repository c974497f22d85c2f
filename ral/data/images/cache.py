"""Decoded images by their content: each is decoded once in its life, whatever archive or folder it comes in.

`state_dir/images/<size-fit-range-code>/` has Arrow files ("chunks") of a few hundred images, each image under the hash of its
file's content (and whether it was inverted). The folder's name is made of the parameters, the code and the library versions that decode, so another
way of decoding never meets these pixels. Chunks are written whole or not at all, carry a checksum, and are private.
"""

import hashlib
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from ral.data.images.decode import Range
from ral.data.images.resize import Fit
from ral.files import private_file, private_folder, remove_stale_drafts

# Images of a chunk, and its most bytes: what a killed worker loses, and the memory that one needs.
CHUNK_IMAGES, CHUNK_BYTES = 256, 64 << 20

# Files and packages that decide what an image's pixels become.
_CODE = (
    "decode.py", "resize.py", "dicom.py", "dicom_display.py", "npz.py", "histogram.py", "bad_image.py", "limits.py",
)  # fmt: skip
_PACKAGES = ("pillow", "numpy", "scipy", "pydicom", "python-gdcm")

# Columns of what is said of an image.
_REMARKS = ("reason", "detail", "note")


class Damaged(Exception):
    """A chunk is not what was written; it has been removed."""


@dataclass(frozen=True)
class Chunk:
    """Images of one file of the store.

    `images` is uint8 [images, size, size]; `sums` int64 [images, 2] has each image's sum of pixels and of their squares.
    """

    images: np.ndarray
    sums: np.ndarray


@dataclass(frozen=True)
class CacheLookup:
    """Where images are in the store; one entry per image asked for."""

    chunk: np.ndarray
    """Index into `names`, or -1 where the store does not have the image."""
    row: np.ndarray
    names: tuple[str, ...]
    reason: list[str]
    """Why the image cannot be used, or ""."""
    detail: list[str]
    note: list[str]
    """What is to be said of an image that is used (`ral.data.images.decode.NOTES`), or ""."""


def decoding_version(size: int, fit: Fit, value_range: Range) -> str:
    """Name of one way of decoding: parameters, code and libraries."""
    digest = hashlib.sha256()
    for name in _CODE:
        digest.update(Path(__file__).with_name(name).read_bytes())
    for package in _PACKAGES:
        try:
            digest.update(f"{package} {version(package)}".encode())
        except PackageNotFoundError:
            digest.update(f"no {package}".encode())
    return f"{size}-{fit}-{value_range}-{digest.hexdigest()[:16]}"


def chunk_images(size: int) -> int:
    """Images of a chunk of images of this size."""
    return max(1, min(CHUNK_IMAGES, CHUNK_BYTES // size**2))


class DecodedImageCache:
    """The chunks of one way of decoding.

    Args:
        folder: where they are; made if it is missing.
        size: height and width of an image.
    """

    def __init__(self, folder: Path, size: int) -> None:
        self.folder, self.size = private_folder(folder), size

    @classmethod
    def open(cls, state_dir: Path, size: int, fit: Fit, value_range: Range) -> "DecodedImageCache":
        """The store of a user's state folder for one way of decoding."""
        private_folder(state_dir)
        private_folder(state_dir / "images")
        return cls(state_dir / "images" / decoding_version(size, fit, value_range), size)

    def path(self, hashes: Sequence[str]) -> Path:
        """The file of a chunk of just these images."""
        return self.folder / f"{hashlib.sha256(','.join(hashes).encode()).hexdigest()[:32]}.arrow"

    def write(
        self,
        hashes: Sequence[str],
        images: np.ndarray,
        faults: Sequence[tuple[str, str]],
        notes: Sequence[str],
    ) -> None:
        """Write a chunk.

        Args:
            hashes: content hash per image.
            images: uint8 [images, size, size]; of an image with a fault, anything.
            faults: (reason, detail) per image, ("", "") for a good one.
            notes: per image, mostly "".

        Raises:
            OSError: the disk is full, or not writable.
        """
        flat = np.ascontiguousarray(images).reshape(len(images), -1)
        sums = np.empty((len(flat), 2), np.int64)
        wide = np.empty(images.shape[1:], np.uint32)  # a row of pixels adds up to less than 2^32, and fast
        for row, image in zip(sums, images, strict=True):
            wide[:] = image
            row[0] = wide.sum(1, np.uint32).sum(dtype=np.int64)
            np.multiply(wide, wide, out=wide)
            row[1] = wide.sum(1, np.uint32).sum(dtype=np.int64)
        pixels = pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(flat.shape[1]), len(flat), [None, pa.py_buffer(flat)]
        )
        table = pa.record_batch(
            {
                "hash": pa.array(hashes, pa.string()),
                "reason": pa.array([reason for reason, _ in faults], pa.string()),
                "detail": pa.array([detail for _, detail in faults], pa.string()),
                "note": pa.array(notes, pa.string()),
                "sum": sums[:, 0],
                "squares": sums[:, 1],
                "pixels": pixels,
            }
        )
        table = table.replace_schema_metadata({"checksum": _checksum(table)})
        with (
            private_file(self.path(hashes)) as draft,
            pa.OSFile(str(draft), "wb") as sink,
            pa.ipc.new_file(sink, table.schema) as writer,
        ):
            writer.write_batch(table)

    def read(self, name: str) -> Chunk:
        """A chunk, checked and memory-mapped.

        Raises:
            Damaged: its bytes are not those that were written; the file is gone now.
        """
        path = self.folder / name
        try:
            table = _open(path)
            if table.schema.metadata[b"checksum"] != _checksum(table).encode():
                raise pa.ArrowInvalid("checksum")
            os.utime(path)  # used today: see `prune`
            sums = np.stack([table.column(name).to_numpy() for name in ("sum", "squares")], 1)
            return Chunk(_pixels(table).reshape(-1, self.size, self.size), sums)
        except (pa.ArrowException, OSError, KeyError, TypeError, ValueError):
            path.unlink(missing_ok=True)
            raise Damaged(name) from None

    def find(self, hashes: "Sequence[str] | pd.Series[str]") -> CacheLookup:
        """Look images up; chunks that cannot be opened are removed."""
        names, parts = [], []
        for path in sorted(self.folder.glob("*.arrow")):
            try:
                parts.append(_open(path).select(["hash", *_REMARKS]).replace_schema_metadata())
                names.append(path.name)
            except (pa.ArrowException, OSError, KeyError):
                path.unlink(missing_ok=True)
        if not parts:
            nowhere = np.full(len(hashes), -1)
            return CacheLookup(nowhere, nowhere, (), *([""] * len(hashes) for _ in _REMARKS))
        known = pa.Table.from_batches(parts).combine_chunks()
        place = pc.index_in(pa.array(hashes, pa.string()), known["hash"])
        starts = np.cumsum([0, *(part.num_rows for part in parts)])
        at = place.fill_null(-1).to_numpy().astype(np.int64)
        chunk = np.searchsorted(starts, at, side="right") - 1
        reason, detail, note = (known[name].take(place).fill_null("").to_pylist() for name in _REMARKS)
        return CacheLookup(
            chunk=np.where(at < 0, -1, chunk),
            row=at - starts[chunk],
            names=tuple(names),
            reason=reason,
            detail=detail,
            note=note,
        )


def prune(state_dir: Path, most_bytes: int | None = None, most_days: float | None = None) -> int:
    """Remove chunks that were not used for `most_days`, then the longest unused until `most_bytes` are left.

    A chunk counts as used when a step packs images from it. Losing one costs decoding its images again, no more.

    Returns:
        Bytes freed.
    """
    folder = state_dir / "images"
    files = sorted(
        ((path.stat().st_mtime, path.stat().st_size, path) for path in folder.glob("*/*.arrow")),
        key=lambda file: file[0],
    )
    kept, freed = sum(size for _, size, _ in files), 0
    for used, size, path in files:
        old = most_days is not None and time.time() - used > most_days * 86400
        if old or (most_bytes is not None and kept > most_bytes):
            path.unlink(missing_ok=True)
            kept, freed = kept - size, freed + size
    for way in folder.glob("*"):
        remove_stale_drafts(way)
        if not any(way.iterdir()):
            shutil.rmtree(way, ignore_errors=True)
    return freed


def _open(path: Path) -> pa.RecordBatch:
    return pa.ipc.open_file(pa.memory_map(str(path), "r")).get_batch(0)


def _checksum(table: pa.RecordBatch) -> str:
    digest = hashlib.sha256()
    for name in ("hash", *_REMARKS):
        digest.update("\0".join(table.column(name).to_pylist()).encode())
    for name in ("sum", "squares"):
        digest.update(table.column(name).to_numpy().tobytes())
    digest.update(_pixels(table).data)
    return digest.hexdigest()


def _pixels(table: pa.RecordBatch) -> np.ndarray:
    """The pixels of a chunk, flat; a view."""
    column = table.column("pixels")
    return np.frombuffer(column.buffers()[1], np.uint8, table.num_rows * column.type.byte_width)
