"""Prepared data with random pixels and labels, for benchmarks that need no real images."""

from pathlib import Path

import numpy as np
import pandas as pd

from ral.data.dataset import Dataset, open_dataset
from ral.data.dataset_info import DatasetInfo, LabelCounts, SameImageCounts, Shard, write_class_counts
from ral.data.images.shards import write_shard

FINDINGS = tuple(f"Finding {number}" for number in range(14))
# Share of positives: the mean over NIH ChestX-ray14's findings.
POSITIVES = 0.05


def write_dataset(folder: Path, images: int, size: int, shard_images: int = 4096) -> Dataset:
    """Write shards of random images with random labels, 90 % of them for training, and open them."""
    rng = np.random.default_rng(0)
    ids = [f"random_{number:08d}.png" for number in range(images)]
    split = np.where(np.arange(images) % 10 == 0, "val", "train")
    labels = (rng.random((images, len(FINDINGS))) < POSITIVES).astype(np.int8)
    studies = pd.DataFrame({"image_id": ids, "patient_id": ids, "split": split}).join(
        pd.DataFrame(labels, columns=list(FINDINGS))
    )
    studies.to_parquet(folder / "studies.parquet", index=False)
    (folder / "shards").mkdir()
    shards: list[Shard] = []
    for start in range(0, images, shard_images):
        part = ids[start : start + shard_images]
        path = folder / "shards" / f"{len(shards):05}.arrow"
        digest = write_shard(path, part, rng.integers(0, 256, (len(part), size, size), np.uint8))
        shards.append(Shard(name=path.name, images=len(part), sha256=digest))
    positives = {name: int(labels[split == "train", index].sum()) for index, name in enumerate(FINDINGS)}
    number = int((split == "train").sum())
    counts = LabelCounts(
        images=number,
        positives=positives,
        negatives={name: number - n for name, n in positives.items()},
        unknown=dict.fromkeys(FINDINGS, 0),
    )
    write_class_counts(folder / "class_counts.json", {"train": counts})
    DatasetInfo(
        source="random",
        phantom=True,
        images=images,
        patients=images,
        rows=images,
        left_out={},
        same_image=SameImageCounts(images=0, patients=0, apart=0, examples=[], joined=False),
        inverted=0,
        notes={},
        findings=FINDINGS,
        size=size,
        pixel_mean=127.5,
        pixel_deviation=73.9,
        split={},
        shards=shards,
    ).write(folder / "dataset.json")
    return open_dataset(folder)
