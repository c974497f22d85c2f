"""External sort of tables larger than memory: index of image ids, rows spilled to disk, counts of labels.

The step preprocess reads its source in chunks. What it needs of all rows at once (patient, labels) stays in
memory, a few dozen bytes a row. The rest is spilled to buckets on disk by the index of the image, and read
back bucket by bucket.
"""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ral.data.dataset_info import LabelCounts

# Rows per bucket, which bounds memory.
BUCKET_ROWS = 500_000

# Ids hashed at a time; meanwhile each is a Python object.
HASH_CHUNK = 1_000_000


class ImageIdIndex:
    """Maps image ids to their index in stored order with 16 bytes an image; a dictionary takes about a hundred.

    Args:
        image_ids: unique ids of all images, in stored order.
    """

    def __init__(self, image_ids: "pd.Series[str]") -> None:
        self._ids = _array(image_ids)
        keys = _hashes(self._ids)
        self._order = np.argsort(keys, kind="stable")
        self._keys = keys[self._order]

    def find(self, image_ids: "pd.Series[str]") -> np.ndarray:
        """Index of each image, int64; -1 where there is no such image."""
        wanted = _array(image_ids)
        keys = _hashes(wanted)
        slot = np.searchsorted(self._keys, keys)
        result = np.full(len(keys), -1)
        # Needs a second pass only if two ids have the same hash.
        pending = np.flatnonzero(slot < len(self._keys))
        while len(pending):
            pending = pending[self._keys[slot[pending]] == keys[pending]]
            index = self._order[slot[pending]]
            same = pc.equal(self._ids.take(pa.array(index)), wanted.take(pa.array(pending))).to_numpy(
                zero_copy_only=False
            )
            result[pending[same]] = index[same]
            pending = pending[~same]
            slot[pending] += 1
            pending = pending[slot[pending] < len(self._keys)]
        return result


def _array(ids: "pd.Series[str]") -> pa.Array:
    array = pa.array(ids, pa.large_string())
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array


def _hashes(ids: pa.Array) -> np.ndarray:
    parts = [
        pd.util.hash_array(ids[start : start + HASH_CHUNK].to_numpy(zero_copy_only=False), categorize=False)
        for start in range(0, len(ids), HASH_CHUNK)
    ]
    return np.concatenate(parts) if parts else np.empty(0, np.uint64)


class SpillBuffer:
    """Rows on disk, added in any order and read back in stored order. A context manager that removes them on exit.

    Args:
        folder: folder to create; must not exist.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[int, list[Path]] = {}
        self._blocks = 0

    def __enter__(self) -> "SpillBuffer":
        self._folder.mkdir()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def add(self, rows: pd.DataFrame) -> None:
        """Add rows; their column `stored` is the sort key.

        Raises:
            OSError: the disk is full, or not writable.
        """
        for bucket, part in rows.groupby(rows["stored"] // BUCKET_ROWS, sort=False):
            path = self._folder / f"{bucket}-{self._blocks}.arrow"
            part.reset_index(drop=True).to_feather(path, compression="uncompressed")
            self._files.setdefault(int(bucket), []).append(path)
        self._blocks += 1

    def in_order(self) -> Iterator[pd.DataFrame]:
        """Yield all rows sorted by `stored`, a bucket at a time."""
        for bucket in sorted(self._files):
            rows = pd.concat([pd.read_feather(path) for path in self._files[bucket]])
            yield rows.sort_values("stored", kind="stable", ignore_index=True)


class StudiesWriter:
    """Writes a Parquet file chunk by chunk and counts its labels; a context manager.

    Args:
        path: file to write.
        findings: label columns to count (1, 0, null).
        splits: values of the column `split`.
    """

    def __init__(self, path: Path, findings: Sequence[str], splits: Sequence[str]) -> None:
        self._path, self._findings, self._splits = path, tuple(findings), tuple(splits)
        self._file: pq.ParquetWriter | None = None
        self._counts = np.zeros((len(splits), 1 + 3 * len(findings)), np.int64)

    def __enter__(self) -> "StudiesWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, rows: pd.DataFrame) -> None:
        """Write rows; all calls must have the same columns."""
        table = pa.Table.from_pandas(rows, preserve_index=False)
        if self._file is None:
            self._file = pq.ParquetWriter(
                self._path, table.schema, compression="none"
            )  # see ral.data.prepare
        self._file.write_table(table.cast(self._file.schema))
        labels = rows[list(self._findings)].to_numpy(np.float32, na_value=np.nan)
        split = rows["split"].to_numpy()
        for number, name in enumerate(self._splits):
            in_split = labels[split == name]
            self._counts[number] += [
                len(in_split), *(in_split == 1).sum(0), *(in_split == 0).sum(0), *np.isnan(in_split).sum(0)
            ]  # fmt: skip

    @property
    def class_counts(self) -> dict[str, LabelCounts]:
        """Number of images, and of positives, negatives and unknown labels per finding, for each split."""
        named = {}
        for name, row in zip(self._splits, self._counts.tolist(), strict=True):
            kinds = np.reshape(row[1:], (3, len(self._findings))).tolist()
            positives, negatives, unknown = (
                dict(zip(self._findings, values, strict=True)) for values in kinds
            )
            named[name] = LabelCounts(
                images=row[0], positives=positives, negatives=negatives, unknown=unknown
            )
        return named
