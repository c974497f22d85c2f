"""Reads the prepared data for training and evaluation: a table, and batches of pixels from memory-mapped shards."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from ral.data.dataset_info import ClassCounts, DatasetInfo, read_class_counts
from ral.data.images.shards import open_shard
from ral.errors import UserError
from ral.files import sha256


@dataclass(frozen=True)
class Dataset:
    """Images in shard order: row i of `studies` is row i of the pixels (checked by `open_dataset`)."""

    studies: pd.DataFrame
    info: DatasetInfo
    class_counts: ClassCounts
    shards: tuple[np.ndarray, ...]
    starts: np.ndarray
    folder: Path

    @property
    def findings(self) -> tuple[str, ...]:
        """The findings to learn, in the order of the model's outputs."""
        return self.info.findings

    def rows(self, split: str) -> np.ndarray:
        """Row numbers of the images in `split`, int64, ascending."""
        return np.flatnonzero(self.studies["split"].to_numpy() == split)

    def targets(self) -> np.ndarray:
        """Labels float32 [images, findings]: 1, 0, NaN where unknown."""
        return self.studies[list(self.findings)].to_numpy(np.float32)

    def gather(self, rows: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Copy the pixels of arbitrary rows into one array, uint8 [rows, size, size].

        Shards are read in ascending order, whatever the order of `rows`, with one copy per shard. A single shard is
        copied at memory bandwidth.

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
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(self.studies):
            raise IndexError(f"rows must be from 0 to {len(self.studies) - 1}")
        flat = out.reshape(len(rows), size * size)
        if len(self.shards) == 1:
            self.shards[0].reshape(-1, size * size).take(rows, axis=0, out=flat, mode="clip")
            return out
        order = np.argsort(rows, kind="stable")
        ascending = rows[order]
        ends = np.searchsorted(ascending, [*self.starts[1:], len(self.studies)]).tolist()
        ordered = np.empty_like(flat)
        begin = 0
        for shard, start, end in zip(self.shards, self.starts.tolist(), ends, strict=True):
            if begin < end:
                pixels = shard.reshape(len(shard), size * size)
                pixels.take(ascending[begin:end] - start, axis=0, out=ordered[begin:end], mode="clip")
                begin = end
        flat[order] = ordered
        return out

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


def open_dataset(folder: Path) -> Dataset:
    """Open the output of the step preprocess; pixels stay on disk until they are gathered.

    Raises:
        UserError: table and shards do not match (mixed from two runs).
    """
    info = DatasetInfo.read(folder / "dataset.json")
    studies = pd.read_parquet(folder / "studies.parquet")
    opened = [open_shard(folder / "shards" / shard.name, info.size) for shard in info.shards]
    in_shards = [image_id for ids, _ in opened for image_id in ids]
    if in_shards != studies["image_id"].tolist():
        raise UserError(
            f"{folder}: studies.parquet and the shards list different images. Run preprocess again."
        )
    lengths = [len(ids) for ids, _ in opened]
    return Dataset(
        studies=studies,
        info=info,
        class_counts=read_class_counts(folder / "class_counts.json"),
        shards=tuple(pixels for _, pixels in opened),
        starts=np.cumsum([0, *lengths[:-1]]),
        folder=folder,
    )
