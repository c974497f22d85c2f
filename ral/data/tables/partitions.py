"""A label table of any size, divided into partitions on disk by patient.

The step validate checks one partition at a time. All rows of a patient, and of patients whose ids look alike,
are in the same partition, so checks of patients are exact. Checks of images run over all partitions
(`find_repeated`, `image_sizes`, `ral.data.tables.duplicates.same_content`).
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import TracebackType

import numpy as np
import pandas as pd
import pyarrow as pa

from ral.data.tables.lookalike_ids import comparable_ids
from ral.data.tables.spill import ImageIdIndex

# Approximate rows per partition, which bounds memory. A smaller table is one partition.
ROWS = 500_000

# Buckets of each chunk by patient hash; partitions are ranges of buckets, chosen once the number of rows is known.
BUCKETS = 256

# Column with the index of a row in the table; no source has a column of that name.
ROW_INDEX = "row index in the table"


@dataclass(frozen=True)
class Partition:
    """Some of the rows on disk; can be read by other processes.

    Attributes:
        files: one file per chunk of the table, of BUCKETS record batches each.
        buckets: range of buckets, first and one past the last.
    """

    files: tuple[Path, ...]
    buckets: tuple[int, int]

    def read(self, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """Read the rows in the order of the table, indexed by their row index.

        Args:
            columns: columns to read; None reads all.
        """
        batches = []
        for path in self.files:
            with pa.OSFile(str(path)) as stream:
                schema = pa.ipc.open_file(stream).schema
                wanted = (
                    None if columns is None else [schema.get_field_index(n) for n in (*columns, ROW_INDEX)]
                )
                options = pa.ipc.IpcReadOptions(included_fields=wanted)
                file = pa.ipc.open_file(stream, options=options)
                batches += [file.get_batch(number) for number in range(*self.buckets)]
        rows: pd.DataFrame = pa.Table.from_batches(batches).to_pandas()
        return rows.set_index(ROW_INDEX).sort_index().rename_axis(None)


class Partitions:
    """Rows of a table on disk, grouped by patient. A context manager that removes them on exit.

    Args:
        folder: folder to create; must not exist.
        patient: column by which to group; values that look alike are grouped too.
    """

    def __init__(self, folder: Path, patient: str) -> None:
        self._folder, self._patient = folder, patient
        self._files: list[Path] = []
        self._counts = np.zeros(BUCKETS, np.int64)

    def __enter__(self) -> "Partitions":
        self._folder.mkdir()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def rows(self) -> int:
        """Number of rows."""
        return int(self._counts.sum())

    def add(self, chunk: pd.DataFrame) -> None:
        """Append the next rows of the table.

        Raises:
            OSError: the disk is full, or not writable.
        """
        bucket = (_hashes(comparable_ids(chunk[self._patient])) % np.uint64(BUCKETS)).astype(np.int64)
        order = np.argsort(bucket, kind="stable")
        indexed = chunk.assign(**{ROW_INDEX: np.arange(self.rows, self.rows + len(chunk))})
        batch = pa.RecordBatch.from_pandas(indexed.iloc[order], preserve_index=False)
        counts = np.bincount(bucket, minlength=BUCKETS)
        path = self._folder / f"{len(self._files)}.arrow"
        with pa.OSFile(str(path), "wb") as stream, pa.ipc.new_file(stream, batch.schema) as file:
            for start, count in zip((np.cumsum(counts) - counts).tolist(), counts.tolist(), strict=True):
                file.write_batch(batch.slice(start, count))
        self._files.append(path)
        self._counts += counts

    def all(self) -> list[Partition]:
        """The non-empty partitions, of about ROWS rows each."""
        number = min(BUCKETS, -(-self.rows // ROWS))
        ends = [BUCKETS * part // number for part in range(number + 1)]
        return [
            Partition(tuple(self._files), (first, last))
            for first, last in pairwise(ends)
            if self._counts[first:last].any()
        ]


def find_repeated(partitions: Sequence[Partition], column: str) -> list[np.ndarray]:
    """Which rows have a value that also occurs in another row of any partition, bool [rows] for each partition.

    Hashes are compared first, at eight bytes a row; then the values of the rows whose hashes collide.
    """
    hashes = [_hashes(part.read([column])[column]) for part in partitions]
    ordered = np.sort(np.concatenate(hashes))
    collisions = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    masks = [np.isin(part_hashes, collisions) for part_hashes in hashes]
    if len(collisions):
        suspects = [part.read([column])[column][mask] for part, mask in zip(partitions, masks, strict=True)]
        values = pd.concat(suspects, ignore_index=True)
        duplicated = (values.duplicated(keep=False) & values.notna()).to_numpy()
        ends = np.cumsum([len(part_suspects) for part_suspects in suspects])
        for mask, confirmed in zip(masks, np.split(duplicated, ends), strict=False):
            mask[mask] = confirmed
    return masks


def image_sizes(
    partitions: Sequence[Partition], column: str, images: pd.DataFrame
) -> tuple[list[np.ndarray], int]:
    """Size in bytes of each row's image, and the number of images without a row.

    Args:
        partitions: all partitions of a table.
        column: column of the image ids.
        images: image_id and bytes of each image.

    Returns:
        float64 [rows] for each partition, NaN where a row has no image; and the number of images without a row.
    """
    index, sizes = ImageIdIndex(images["image_id"]), images["bytes"].to_numpy(np.float64)
    has_row, row_sizes = np.zeros(len(images), bool), []
    for part in partitions:
        image = index.find(part.read([column])[column])
        has_row[image[image >= 0]] = True
        row_sizes.append(
            np.where(image >= 0, sizes[image], np.nan) if len(images) else np.full(len(image), np.nan)
        )
    return row_sizes, int((~has_row).sum())


def _hashes(values: pd.Series) -> np.ndarray:
    """Hash of each value, uint64, the same on every machine."""
    return pd.util.hash_pandas_object(values, index=False, categorize=False).to_numpy()
