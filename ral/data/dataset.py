"""The prepared data as training and evaluation read it: a table, and batches of pixels gathered from shards."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ral.data.shards import open_shard
from ral.errors import UserError
from ral.files import read_json


@dataclass(frozen=True)
class Dataset:
    """Films in shard order: row i of `studies` is row i of the pixels, and this was checked when it was opened."""

    studies: pd.DataFrame
    facts: dict[str, Any]
    class_counts: dict[str, Any]
    shards: tuple[np.ndarray, ...]
    starts: np.ndarray

    @property
    def findings(self) -> tuple[str, ...]:
        """The findings to learn, in the order of the model's outputs."""
        return tuple(self.facts["findings"])

    def rows(self, split: str) -> np.ndarray:
        """Row numbers of the films in `split`, int64 ascending."""
        return np.flatnonzero(self.studies["split"].to_numpy() == split)

    def targets(self) -> np.ndarray:
        """Labels float32 [films, findings]: 1, 0, NaN where unknown."""
        return self.studies[list(self.findings)].to_numpy(np.float32)

    def gather(self, rows: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Copy the pixels of arbitrary rows into one array, uint8 [rows, size, size]: `out`, or a new one."""
        size = self.facts["size"]
        batch = np.empty((len(rows), size, size), np.uint8) if out is None else out
        shard = np.searchsorted(self.starts, rows, side="right") - 1
        for index in np.unique(shard):
            here = np.flatnonzero(shard == index)
            batch[here] = self.shards[index][rows[here] - self.starts[index]]
        return batch


def open_dataset(folder: Path) -> Dataset:
    """Open what the step preprocess wrote; pixels stay on disk until they are gathered.

    Raises:
        UserError: table and shards do not belong together (mixed from two runs).
    """
    facts = read_json(folder / "dataset.json")
    studies = pd.read_parquet(folder / "studies.parquet")
    opened = [open_shard(folder / "shards" / shard["name"], facts["size"]) for shard in facts["shards"]]
    in_shards = [image_id for ids, _ in opened for image_id in ids]
    if in_shards != studies["image_id"].tolist():
        raise UserError(
            f"{folder}: studies.parquet and the shards list different films. Run preprocess again."
        )
    lengths = [len(ids) for ids, _ in opened]
    return Dataset(
        studies=studies,
        facts=facts,
        class_counts=read_json(folder / "class_counts.json"),
        shards=tuple(pixels for _, pixels in opened),
        starts=np.cumsum([0, *lengths[:-1]]),
    )
