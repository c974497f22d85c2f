"""Prepared data with random pixels and labels, for benchmarks that need no real images."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from ral.data.dataset import Dataset, open_dataset
from ral.data.dataset_info import DatasetInfo, SameImageCounts, Shard, write_class_counts
from ral.data.images.shards import write_shard
from ral.data.splits.methods import SPLITS
from ral.data.tables.spill import StudiesWriter

FINDINGS = tuple(f"Finding {number}" for number in range(14))
# Share of positives: the mean over NIH ChestX-ray14's findings. Share of unknown labels.
POSITIVES, UNKNOWN = 0.05, 0.02
# Rows of the table that are made at once, and images of a patient.
BLOCK, IMAGES_PER_PATIENT = 500_000, 4


def write_dataset(
    folder: Path, images: int, size: int, shard_images: int = 4096, findings: Sequence[str] = FINDINGS
) -> Dataset:
    """Write shards of random images with random labels, and open them."""
    write_tables_and_shards(folder, images, size, shard_images, findings)
    return open_dataset(folder)


def write_tables_and_shards(
    folder: Path, images: int, size: int, shard_images: int = 4096, findings: Sequence[str] = FINDINGS
) -> None:
    """Write shards of random images with random labels: of ten patients, eight are for training, one for validation
    and one for testing. Memory holds one block of rows.
    """
    rng = np.random.default_rng(0)
    with StudiesWriter(folder / "studies.parquet", findings, SPLITS) as writer:
        for start in range(0, images, BLOCK):
            writer.add(_studies(np.arange(start, min(start + BLOCK, images)), findings, rng))
    (folder / "shards").mkdir()
    shards: list[Shard] = []
    for start in range(0, images, shard_images):
        part = _ids(np.arange(start, min(start + shard_images, images)))
        path = folder / "shards" / f"{len(shards):05}.arrow"
        digest = write_shard(path, part, rng.integers(0, 256, (len(part), size, size), np.uint8))
        shards.append(Shard(name=path.name, images=len(part), sha256=digest))
    write_class_counts(folder / "class_counts.json", writer.class_counts)
    _info(images, size, tuple(findings), shards).write(folder / "dataset.json")


def _ids(numbers: np.ndarray) -> list[str]:
    return [f"random_{number:08d}.png" for number in numbers.tolist()]


def _studies(numbers: np.ndarray, findings: Sequence[str], rng: np.random.Generator) -> pd.DataFrame:
    """Rows of studies.parquet, with the types that preprocess writes."""
    patients = numbers // IMAGES_PER_PATIENT
    names = np.array(["train"] * 8 + ["val", "test"])
    drawn = rng.random((len(numbers), len(findings)), np.float32)
    labels = np.where(drawn < UNKNOWN, np.nan, drawn < UNKNOWN + POSITIVES).astype(np.float32)
    texts = {
        "image_id": _ids(numbers),
        "patient_id": patients.astype(str),
        "study_id": numbers.astype(str),
        "view": np.where(numbers % 2, "AP", "PA"),
        "sex": np.where(patients % 2, "F", "M"),
        "path": "images.tar",
        "member": _ids(numbers),
        "split": names[patients % len(names)],
    }
    columns = {name: pd.Series(values, index=numbers, dtype="str") for name, values in texts.items()}
    columns["age_years"] = pd.Series((patients % 80).astype(np.float32), index=numbers)
    return pd.DataFrame(columns).join(pd.DataFrame(labels, index=numbers, columns=list(findings)))


def _info(images: int, size: int, findings: tuple[str, ...], shards: Sequence[Shard]) -> DatasetInfo:
    return DatasetInfo(
        source="random",
        phantom=True,
        images=images,
        patients=-(-images // IMAGES_PER_PATIENT),
        rows=images,
        left_out={},
        same_image=SameImageCounts(images=0, patients=0, apart=0, examples=[], joined=False),
        inverted=0,
        notes={},
        findings=findings,
        size=size,
        pixel_mean=127.5,
        pixel_deviation=73.9,
        split={},
        shards=shards,
    )
