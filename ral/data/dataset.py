"""Reads the prepared data for training and evaluation: columns of a table, and batches of pixels from memory-mapped
shards.
"""

import ctypes
import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ral.data.dataset_info import ClassCounts, DatasetInfo, read_class_counts
from ral.data.images.shards import open_shard
from ral.errors import UserError
from ral.files import sha256

TABLE = "studies.parquet"
# Only with data.uncertain: keep, for data with uncertain labels.
UNCERTAIN_TABLE = "uncertain.parquet"
BOXES = "boxes.parquet"

# Rows of the table that are read at once.
BLOCK = 2**17

_madvise = ctypes.CDLL(None, use_errno=True).madvise
_madvise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int


@dataclass(frozen=True)
class Dataset:
    """Images in shard order: row i of the table is row i of the pixels (checked by `open_dataset`).

    A rank of a training holds labels and row numbers, about 30 bytes an image. Pixels and image ids stay in the
    memory-mapped shards; `studies` needs some hundred bytes an image, so ranks do not use it.
    """

    info: DatasetInfo
    class_counts: ClassCounts
    shards: tuple[np.ndarray, ...]
    """Pixels uint8 [images, size, size]."""
    ids: tuple[pa.StringArray, ...]
    """Image ids of each shard."""
    starts: np.ndarray
    """Row number of each shard's first image, int64 [shards]."""
    folder: Path
    table: pa.Table | None = None
    """In place of the folder's studies.parquet."""

    def __len__(self) -> int:
        """Number of images."""
        return int(self.starts[-1]) + len(self.shards[-1])

    @property
    def findings(self) -> tuple[str, ...]:
        """The findings to learn, in the order of the model's outputs."""
        return self.info.findings

    @cached_property
    def studies(self) -> pd.DataFrame:
        """The whole table."""
        return pd.read_parquet(self.folder / TABLE) if self.table is None else self.table.to_pandas()

    @cached_property
    def boxes(self) -> pd.DataFrame | None:
        """Boxes of findings, in pixels of the prepared images (`ral.data.boxes.COLUMNS`); None if there are none."""
        path = self.folder / BOXES
        return pd.read_parquet(path) if path.exists() else None

    def _read_blocks(self, columns: Sequence[str]) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Columns of the table, some rows at a time, with the number of the first of these rows."""
        if self.table is None:
            yield from _read_blocks(self.folder / TABLE, columns)
            return
        first = 0
        for block in self.table.select(list(columns)).to_batches(BLOCK):
            yield first, block
            first += len(block)

    def rows(self, split: str) -> np.ndarray:
        """Row numbers of the images in `split`, int64, ascending."""
        return self._split_rows.get(split, np.empty(0, np.int64))

    @cached_property
    def _split_rows(self) -> dict[str, np.ndarray]:
        """The rows of each split."""
        parts: dict[str, list[np.ndarray]] = {}
        for first, block in self._read_blocks(["split"]):
            encoded = block.column(0).dictionary_encode()
            codes = encoded.indices.to_numpy(zero_copy_only=False)
            for code, split in enumerate(encoded.dictionary.to_pylist()):
                parts.setdefault(split, []).append(first + np.flatnonzero(codes == code))
        return {split: np.concatenate(rows) for split, rows in parts.items()}

    @cached_property
    def labels(self) -> NDArray[np.int8]:
        """Labels [images, findings]: 1, 0, -1 where unknown; a quarter of the memory of `targets`.

        Raises:
            UserError: the table has other labels.
        """
        labels = np.empty((len(self), len(self.findings)), np.int8)
        for first, block in self._read_blocks(self.findings):
            for index, finding in enumerate(self.findings):
                values = block.column(finding).to_numpy(zero_copy_only=False)
                known = ~np.isnan(values)
                labels[first : first + len(block), index] = np.where(known, values, -1)
                if not np.isin(values[known], (0, 1)).all():
                    raise UserError(
                        f"{self.folder / TABLE}: {finding} has labels other than 1, 0 and unknown. Run preprocess "
                        "again."
                    )
        return labels

    def targets(self, rows: np.ndarray | None = None) -> NDArray[np.float32]:
        """Labels of rows (None: all images), float32 [rows, findings]: 1, 0, NaN where unknown."""
        labels = self.labels if rows is None else self.labels[rows]
        targets = labels.astype(np.float32)
        targets[labels < 0] = np.nan
        return targets

    def uncertain(self, rows: np.ndarray) -> NDArray[np.bool_] | None:
        """Which labels of rows the reader called uncertain, bool [rows, findings]; None if that was not recorded
        (data.uncertain: keep) or no label is. In `targets` they are unknown.

        Raises:
            UserError: the record does not belong to the table.
        """
        path = self.folder / UNCERTAIN_TABLE
        if self.table is not None or not path.is_file():
            return None
        marks = pd.read_parquet(path)
        if len(marks) != len(self) or list(marks.columns) != ["image_id", *self.findings]:
            raise UserError(f"{path} does not belong to {TABLE}. Run preprocess again.")
        uncertain: NDArray[np.bool_] = marks[list(self.findings)].to_numpy(bool)[rows]
        return uncertain

    def image_ids(self, rows: np.ndarray) -> NDArray[np.object_]:
        """Image ids of arbitrary rows."""
        ids: NDArray[np.object_] = pa.chunked_array(self.ids, pa.string()).take(pa.array(rows)).to_numpy()
        return ids

    def column(self, name: str, rows: np.ndarray) -> NDArray[np.object_]:
        """Values of a column of texts.

        Args:
            name: name of the column.
            rows: row numbers, ascending.
        """
        parts = []
        for first, block in self._read_blocks([name]):
            begin, end = np.searchsorted(rows, [first, first + len(block)])
            parts.append(block.column(0).take(pa.array(rows[begin:end] - first)))
        values: NDArray[np.object_] = pa.chunked_array(parts).to_numpy()
        return values

    def gather(self, rows: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Copy the pixels of arbitrary rows into one array, uint8 [rows, size, size].

        The disk is asked for all rows before the first is copied: copying alone would wait for one row after the other.

        Args:
            rows: row numbers, in any order; repeats are allowed.
            out: destination, such as the view of a pinned tensor (`tensor.numpy()`); None allocates one.

        Raises:
            IndexError: a row number is out of range.
            ValueError: `out` has the wrong shape or type.
        """
        size = self.info.size
        shape = len(rows), size, size
        if out is None:
            out = np.empty(shape, np.uint8)
        elif out.shape != shape or out.dtype != np.uint8 or not out.flags.c_contiguous:
            raise ValueError(f"out must be contiguous uint8 {shape}, but it is {out.dtype} {out.shape}")
        rows = np.asarray(rows)
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(self):
            raise IndexError(f"rows must be from 0 to {len(self) - 1}")
        shards = np.searchsorted(self.starts, rows, side="right") - 1
        in_shard = rows - self.starts[shards]
        _read_ahead(self._addresses[shards] + in_shard * size**2, size**2)
        for index, (shard, row) in enumerate(zip(shards.tolist(), in_shard.tolist(), strict=True)):
            out[index] = self.shards[shard][row]
        return out

    @cached_property
    def _addresses(self) -> np.ndarray:
        """Where the pixels of each shard are mapped, int64 [shards]."""
        return np.array([shard.ctypes.data for shard in self.shards])

    def verify(self, rows: np.ndarray | None = None) -> None:
        """Check the shards that hold `rows` (None: all shards) against the hashes that preprocess wrote.

        Raises:
            UserError: the content of a shard has changed; the message names it.
        """
        wanted = range(len(self.shards))
        if rows is not None:
            wanted = np.unique(np.searchsorted(self.starts, rows, side="right") - 1).tolist()
        for index in wanted:
            shard = self.info.shards[index]
            path = self.folder / "shards" / shard.name
            if sha256(path) != shard.sha256:
                raise UserError(
                    f"{path} has changed since preprocess wrote it (SHA-256 mismatch). Run `dvc checkout`, or "
                    "preprocess again.",
                    kind="disk",
                )


def _read_ahead(addresses: np.ndarray, length: int) -> None:
    """Let the kernel read `length` bytes at each address from disk, all at the same time; those in memory stay."""
    starts = addresses // mmap.PAGESIZE * mmap.PAGESIZE
    for start, bytes_to_read in zip(starts.tolist(), (addresses + length - starts).tolist(), strict=True):
        _madvise(start, bytes_to_read, mmap.MADV_WILLNEED)


def _read_blocks(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Columns of a Parquet file, some rows at a time, with the number of the first of these rows."""
    first = 0
    with pq.ParquetFile(path) as table:
        for block in table.iter_batches(BLOCK, columns=list(columns)):
            yield first, block
            first += len(block)


def open_dataset(folder: Path) -> Dataset:
    """Open the output of the step preprocess; pixels stay on disk until they are gathered.

    Raises:
        UserError: table and shards do not match (mixed from two runs).
    """
    info = DatasetInfo.read(folder / "dataset.json")
    opened = [open_shard(folder / "shards" / shard.name, info.size) for shard in info.shards]
    ids = tuple(ids for ids, _ in opened)
    if not _same_ids(folder, ids):
        raise UserError(f"{folder}: {TABLE} and the shards list different images. Run preprocess again.")
    return Dataset(
        info=info,
        class_counts=read_class_counts(folder / "class_counts.json"),
        shards=tuple(pixels for _, pixels in opened),
        ids=ids,
        starts=np.cumsum([0, *(len(part) for part in ids[:-1])]),
        folder=folder,
    )


def _same_ids(folder: Path, ids: tuple[pa.StringArray, ...]) -> bool:
    """Whether the table of a prepared folder lists the images of the shards, in their order."""
    in_shards = pa.chunked_array(ids, pa.string())
    end = 0
    for first, block in _read_blocks(folder / TABLE, ["image_id"]):
        end = first + len(block)
        in_table = pa.chunked_array([block.column(0).cast(pa.string())])
        if not in_shards.slice(first, len(block)).equals(in_table):
            return False
    return end == len(in_shards)
