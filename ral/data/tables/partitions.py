"""A label table of any size, shared out to partitions on disk so that what must be seen together is in one of them.

The step validate checks one partition at a time. All rows of a patient are in one, and of patients whose ids look alike,
so that what is said of patients is exact there; what is said of images is found for all partitions together (`repeated`,
`image_sizes`, `ral.data.tables.duplicates.same_content`).
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

# Rows of a partition, more or less: what is in memory at a time. A smaller table is one partition.
ROWS = 500_000

# Shares of each piece by patient; partitions are made of them once it is known how many rows there are.
BUCKETS = 256

# Name of the column that holds a row's place in the table; no source has one of that name.
PLACE = "place in the table"


@dataclass(frozen=True)
class Partition:
    """Some of the rows on disk; other processes can read it too.

    Attributes:
        files: a file per piece of the table, of BUCKETS record batches each.
        buckets: which of them, first and one past the last.
    """

    files: tuple[Path, ...]
    buckets: tuple[int, int]

    def read(self, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """The rows in the order of the table, indexed by their place in it.

        Args:
            columns: what to read; None reads all.
        """
        batches = []
        for path in self.files:
            with pa.OSFile(str(path)) as stream:
                schema = pa.ipc.open_file(stream).schema
                wanted = None if columns is None else [schema.get_field_index(n) for n in (*columns, PLACE)]
                options = pa.ipc.IpcReadOptions(included_fields=wanted)
                file = pa.ipc.open_file(stream, options=options)
                batches += [file.get_batch(number) for number in range(*self.buckets)]
        rows = pa.Table.from_batches(batches).to_pandas()
        return rows.set_index(PLACE).sort_index().rename_axis(None)


class Partitions:
    """Rows of a table on disk, by patient; a context manager, which removes them.

    Args:
        folder: where to put them; must not exist.
        patient: the column whose equal values must come together, and values that look alike.
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
        """How many rows there are."""
        return int(self._counts.sum())

    def add(self, piece: pd.DataFrame) -> None:
        """Keep the next rows of the table.

        Raises:
            OSError: the disk is full, or not writable.
        """
        bucket = (_hashes(comparable_ids(piece[self._patient])) % np.uint64(BUCKETS)).astype(np.int64)
        order = np.argsort(bucket, kind="stable")
        placed = piece.assign(**{PLACE: np.arange(self.rows, self.rows + len(piece))})
        batch = pa.RecordBatch.from_pandas(placed.iloc[order], preserve_index=False)
        counts = np.bincount(bucket, minlength=BUCKETS)
        path = self._folder / f"{len(self._files)}.arrow"
        with pa.OSFile(str(path), "wb") as stream, pa.ipc.new_file(stream, batch.schema) as file:
            for start, count in zip((np.cumsum(counts) - counts).tolist(), counts.tolist(), strict=True):
                file.write_batch(batch.slice(start, count))
        self._files.append(path)
        self._counts += counts

    def all(self) -> list[Partition]:
        """The partitions that have rows, about ROWS each."""
        number = min(BUCKETS, -(-self.rows // ROWS))
        ends = [BUCKETS * part // number for part in range(number + 1)]
        return [
            Partition(tuple(self._files), (first, last))
            for first, last in pairwise(ends)
            if self._counts[first:last].any()
        ]


def repeated(partitions: Sequence[Partition], column: str) -> list[np.ndarray]:
    """Which rows have a value that another row of any partition has too, bool [rows] for each partition.

    Hashes are compared first, eight bytes a row; then, among the rows whose hashes meet, the values themselves.
    """
    hashes = [_hashes(part.read([column])[column]) for part in partitions]
    every = np.sort(np.concatenate(hashes))
    met = np.unique(every[1:][every[1:] == every[:-1]])
    found = [np.isin(some, met) for some in hashes]
    if len(met):
        suspects = [part.read([column])[column][mask] for part, mask in zip(partitions, found, strict=True)]
        values = pd.concat(suspects, ignore_index=True)
        twice = (values.duplicated(keep=False) & values.notna()).to_numpy()
        for mask, these in zip(found, np.split(twice, np.cumsum([len(s) for s in suspects])), strict=False):
            mask[mask] = these
    return found


def image_sizes(
    partitions: Sequence[Partition], column: str, images: pd.DataFrame
) -> tuple[list[np.ndarray], int]:
    """The bytes of each row's image, and how many images have no row.

    Args:
        partitions: all of a table.
        column: of the image ids.
        images: image_id and bytes of each image.

    Returns:
        float64 [rows] for each partition, NaN where a row has no image; and the number of images.
    """
    places, sizes = ImageIdIndex(images["image_id"]), images["bytes"].to_numpy(np.float64)
    seen, found = np.zeros(len(images), bool), []
    for part in partitions:
        at = places.find(part.read([column])[column])
        seen[at[at >= 0]] = True
        found.append(np.where(at >= 0, sizes[at], np.nan) if len(images) else np.full(len(at), np.nan))
    return found, int((~seen).sum())


def _hashes(values: pd.Series) -> np.ndarray:
    """A number for each value, uint64; equal values have equal ones, on every machine."""
    return pd.util.hash_pandas_object(values, index=False, categorize=False).to_numpy()
