"""Tables of any number of rows in little memory: where each image is stored, rows put in that order on disk, counts of labels.

The step preprocess reads its source in blocks. What it needs of all rows at once (patient, labels) stays in memory, a few dozen
bytes a row; the rest is spilled to buckets on disk by the place of the image's pixels, and read back bucket by bucket.
"""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

# Rows of a bucket: what is in memory at a time.
BUCKET_ROWS = 500_000

# Ids hashed at a time: each is a Python object for that long.
HASHED = 1_000_000


class ImageIdIndex:
    """Finds images in their stored order by image id: 16 bytes an image, where a dictionary takes a hundred.

    Args:
        image_ids: of all images, in stored order, each once.
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
        at = np.searchsorted(self._keys, keys)
        found = np.full(len(keys), -1)
        # More than once round only where two ids have the same hash.
        open_ = np.flatnonzero(at < len(self._keys))
        while len(open_):
            open_ = open_[self._keys[at[open_]] == keys[open_]]
            place = self._order[at[open_]]
            same = pc.equal(self._ids.take(pa.array(place)), wanted.take(pa.array(open_))).to_numpy(
                zero_copy_only=False
            )
            found[open_[same]] = place[same]
            open_ = open_[~same]
            at[open_] += 1
            open_ = open_[at[open_] < len(self._keys)]
        return found


def _array(ids: "pd.Series[str]") -> pa.Array:
    found = pa.array(ids, pa.large_string())
    return found.combine_chunks() if isinstance(found, pa.ChunkedArray) else found


def _hashes(ids: pa.Array) -> np.ndarray:
    parts = [
        pd.util.hash_array(ids[start : start + HASHED].to_numpy(zero_copy_only=False), categorize=False)
        for start in range(0, len(ids), HASHED)
    ]
    return np.concatenate(parts) if parts else np.empty(0, np.uint64)


class SpillBuffer:
    """Rows on disk that come in any order and are read back by their place; a context manager, which removes them.

    Args:
        folder: where to put them; must not exist.
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
        """Keep rows; their column `stored` has each one's place.

        Raises:
            OSError: the disk is full, or not writable.
        """
        for bucket, part in rows.groupby(rows["stored"] // BUCKET_ROWS, sort=False):
            path = self._folder / f"{bucket}-{self._blocks}.arrow"
            part.reset_index(drop=True).to_feather(path, compression="uncompressed")
            self._files.setdefault(int(bucket), []).append(path)
        self._blocks += 1

    def in_order(self) -> Iterator[pd.DataFrame]:
        """All rows by `stored`, a bucket at a time."""
        for bucket in sorted(self._files):
            rows = pd.concat([pd.read_feather(path) for path in self._files[bucket]])
            yield rows.sort_values("stored", kind="stable", ignore_index=True)


class StudiesWriter:
    """Writes a Parquet file piece by piece and counts its labels; a context manager.

    Args:
        path: file to write.
        findings: columns to count (1, 0, null).
        splits: values of the column split.
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
        """Write rows, which have the columns of those before."""
        table = pa.Table.from_pandas(rows, preserve_index=False)
        if self._file is None:
            self._file = pq.ParquetWriter(
                self._path, table.schema, compression="none"
            )  # see ral.data.prepare
        self._file.write_table(table.cast(self._file.schema))
        labels = rows[list(self._findings)].to_numpy(np.float32, na_value=np.nan)
        split = rows["split"].to_numpy()
        for number, name in enumerate(self._splits):
            here = labels[split == name]
            self._counts[number] += [
                len(here), *(here == 1).sum(0), *(here == 0).sum(0), *np.isnan(here).sum(0)
            ]  # fmt: skip

    @property
    def class_counts(self) -> dict[str, Any]:
        """Images, and per finding positives, negatives and unknown, in each split."""
        named = {}
        for name, row in zip(self._splits, self._counts.tolist(), strict=True):
            kinds = np.reshape(row[1:], (3, len(self._findings))).tolist()
            named[name] = {"images": row[0]} | {
                kind: dict(zip(self._findings, values, strict=True))
                for kind, values in zip(("positives", "negatives", "unknown"), kinds, strict=True)
            }
        return named
