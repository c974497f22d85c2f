"""Cache of decoded images by content hash: each image is decoded once, whatever archive or folder it comes from.

`state_dir/images/<size-fit-range-code>/` has Arrow files ("chunks") of a few hundred images. The key of an image is the
hash of its file (and whether it was inverted). The folder name covers the parameters, code and library versions of the
decoder, so pixels of different decoders never mix. Chunks are written atomically, have a checksum, and are private.
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

# Limits of a chunk: what a killed worker loses, and the memory that it needs.
CHUNK_IMAGES, CHUNK_BYTES = 256, 64 << 20

# Source files and packages that determine the decoded pixels.
_CODE = (
    "decode.py", "png.py", "inflate.py", "resize.py", "dicom.py", "dicom_display.py", "npz.py", "histogram.py",
    "bad_image.py", "limits.py",
)  # fmt: skip
_PACKAGES = ("pillow", "numpy", "scipy", "pydicom", "python-gdcm")

# Text columns of a chunk.
_REMARKS = ("reason", "detail", "note")


class DamagedChunkError(Exception):
    """A chunk was damaged; it has been removed."""


@dataclass(frozen=True)
class Chunk:
    """Images of one cache file.

    `images` is uint8 [images, size, size]; `sums`, int64 [images, 2], has the sum of pixels and of squared pixels.
    """

    images: np.ndarray
    sums: np.ndarray


@dataclass(frozen=True)
class CacheLookup:
    """Locations of images in the cache; one entry per requested image."""

    chunk: np.ndarray
    """Index into `names`, or -1 if the image is not cached."""
    row: np.ndarray
    names: tuple[str, ...]
    reason: list[str]
    """Why the image cannot be used, or ""."""
    detail: list[str]
    note: list[str]
    """Remark on a usable image (`ral.data.images.decode.NOTES`), or ""."""


def decoding_version(size: int, fit: Fit, value_range: Range) -> str:
    """Identifies a decoder: parameters, code and libraries."""
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
    """Images per chunk for images of this size."""
    return max(1, min(CHUNK_IMAGES, CHUNK_BYTES // size**2))


class DecodedImageCache:
    """The cached chunks of one decoder version.

    Args:
        folder: folder of the chunks; created if missing.
        size: height and width of an image.
    """

    def __init__(self, folder: Path, size: int) -> None:
        self.folder, self.size = private_folder(folder), size

    @classmethod
    def open(cls, state_dir: Path, size: int, fit: Fit, value_range: Range) -> "DecodedImageCache":
        """Open the cache in a state folder for one decoder version."""
        private_folder(state_dir)
        private_folder(state_dir / "images")
        return cls(state_dir / "images" / decoding_version(size, fit, value_range), size)

    def path(self, hashes: Sequence[str]) -> Path:
        """File of the chunk with exactly these images."""
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
            images: uint8 [images, size, size]; arbitrary for images with a fault.
            faults: (reason, detail) per image, ("", "") for usable images.
            notes: one per image, usually "".

        Raises:
            OSError: the disk is full, or not writable.
        """
        flat = np.ascontiguousarray(images).reshape(len(images), -1)
        sums = np.empty((len(flat), 2), np.int64)
        wide = np.empty(images.shape[1:], np.uint32)  # fast, and the sum of a row of pixels is below 2^32
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
        """Memory-map a chunk and verify its checksum.

        Raises:
            DamagedChunkError: the checksum does not match; the file has been removed.
        """
        path = self.folder / name
        try:
            table = _open(path)
            if table.schema.metadata[b"checksum"] != _checksum(table).encode():
                raise pa.ArrowInvalid("checksum")
            os.utime(path)  # marks the last use for `prune`
            sums = np.stack([table.column(name).to_numpy() for name in ("sum", "squares")], 1)
            return Chunk(_pixels(table).reshape(-1, self.size, self.size), sums)
        except (pa.ArrowException, OSError, KeyError, TypeError, ValueError):
            path.unlink(missing_ok=True)
            raise DamagedChunkError(name) from None

    def find(self, hashes: "Sequence[str] | pd.Series[str]") -> CacheLookup:
        """Look up images; chunks that cannot be opened are removed."""
        names, parts = [], []
        for path in sorted(self.folder.glob("*.arrow")):
            try:
                parts.append(_open(path).select(["hash", *_REMARKS]).replace_schema_metadata())
                names.append(path.name)
            except (pa.ArrowException, OSError, KeyError):
                path.unlink(missing_ok=True)
        if not parts:
            absent = np.full(len(hashes), -1)
            return CacheLookup(absent, absent, (), *([""] * len(hashes) for _ in _REMARKS))
        known = pa.Table.from_batches(parts).combine_chunks()
        index = pc.index_in(pa.array(hashes, pa.string()), known["hash"])
        starts = np.cumsum([0, *(part.num_rows for part in parts)])
        image = index.fill_null(-1).to_numpy().astype(np.int64)
        chunk = np.searchsorted(starts, image, side="right") - 1
        reason, detail, note = (known[name].take(index).fill_null("").to_pylist() for name in _REMARKS)
        return CacheLookup(
            chunk=np.where(image < 0, -1, chunk),
            row=image - starts[chunk],
            names=tuple(names),
            reason=reason,
            detail=detail,
            note=note,
        )


def prune(
    state_dir: Path, max_bytes: int | None = None, max_days: float | None = None, dry: bool = False
) -> int:
    """Remove chunks that were not used for `max_days`, then the least recently used until `max_bytes` remain.

    A chunk counts as used when a step packs images from it. Images of removed chunks are decoded again when needed.
    With `dry`, nothing is removed.

    Returns:
        Bytes freed, or with `dry` those that would be.
    """
    folder = state_dir / "images"
    files = sorted(
        ((path.stat().st_mtime, path.stat().st_size, path) for path in folder.glob("*/*.arrow")),
        key=lambda file: file[0],
    )
    remaining, freed = sum(size for _, size, _ in files), 0
    for used, size, path in files:
        expired = max_days is not None and time.time() - used > max_days * 86400
        if expired or (max_bytes is not None and remaining > max_bytes):
            if not dry:
                path.unlink(missing_ok=True)
            remaining, freed = remaining - size, freed + size
    for version_folder in () if dry else folder.glob("*"):
        remove_stale_drafts(version_folder)
        if not any(version_folder.iterdir()):
            shutil.rmtree(version_folder, ignore_errors=True)
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
    """Flat view of the pixels of a chunk."""
    column = table.column("pixels")
    return np.frombuffer(column.buffers()[1], np.uint8, table.num_rows * column.type.byte_width)
