"""Prepared images of 40 test patients and a network that sums pixels, so that what a shift does is known."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from prepared_data import dataset_info
from torch import Tensor, nn

from ral.config.evaluate import EvaluateConfig
from ral.data.dataset import open_dataset
from ral.data.dataset_info import Shard
from ral.data.images.shards import write_shard
from ral.evaluation.calibration_io import SavedCalibration
from ral.evaluation.rows import read_studies
from ral.files import write_json
from ral.models.info import ModelInfo
from ral.robustness.subject import Subject, prepare

FINDINGS = ["Effusion", "Mass", "Hernia"]  # Hernia is not estimable
SIZE = 16


class Sums(nn.Module):
    """Logits are weighted sums of the pixels of three regions: the left third, the middle, the right third.

    With `symmetric`, of the mean of an image and its mirror image, so that the logits do not change under a flip.
    """

    def __init__(self, symmetric: bool = False) -> None:
        super().__init__()
        self.symmetric = symmetric
        self.weight = nn.Parameter(torch.zeros(SIZE, 3), requires_grad=False)
        self.weight[:5, 0] = self.weight[5:11, 1] = self.weight[11:, 2] = 1.0

    def forward(self, images: Tensor) -> Tensor:
        if self.symmetric:
            images = images + images.flip(-1)
        return images.mean(dim=(1, 2)) @ self.weight - 1


def write_images(folder: Path, size: int = SIZE, findings: Sequence[str] = FINDINGS) -> Path:
    """Prepared data: two images a patient; a positive image is brighter in the region of its finding."""
    rng = np.random.default_rng(0)
    images = 240
    labels = (rng.random((images, 3)) < 0.4).astype(np.float64)
    split = np.array(["train"] * 80 + ["val"] * 80 + ["test"] * 80)
    labels[split == "test", 2] = 0
    pixels = rng.integers(60, 160, (images, size, size))
    thirds = (slice(5), slice(5, 11), slice(11, None))
    for column, region in enumerate(thirds):
        pixels[:, :, region] += (20 * labels[:, column]).astype(int)[:, None, None]
    ids = [f"image{number:03}" for number in rng.permutation(images)]
    table = pd.DataFrame(labels, columns=list(findings))
    table.insert(0, "image_id", ids)
    table.insert(1, "patient_id", [f"p{number // 2}" for number in range(images)])
    table.insert(2, "split", split)
    (folder / "shards").mkdir(parents=True)
    table.to_parquet(folder / "studies.parquet", index=False)
    write_shard(folder / "shards/0.arrow", ids, pixels.astype(np.uint8))
    shard = Shard(name="0.arrow", images=images, sha256="")
    dataset_info(size, [shard], list(findings)).write(folder / "dataset.json")
    write_json(folder / "class_counts.json", {})
    return folder


def calibration() -> SavedCalibration:
    """A map and a threshold for every finding."""
    saved = {
        "kind": "beta",
        "numbers": [1.0, 1.0, 0.0],
        "knots": [],
        "thresholds": {"max_f1": 0.4, "sensitivity": 0.3, "cost": 0.3, "prevalence": 0.3},
    }
    return SavedCalibration.model_validate(
        {
            "format": 1, "rule": "max_f1", "data": "images", "version": "0",
            "findings": dict.fromkeys(sorted(FINDINGS), saved),
        }
    )  # fmt: skip


def make_subject(prepared: Path, network: nn.Module, config: EvaluateConfig) -> Subject:
    """The subject of an audit of a network."""
    info = ModelInfo.model_validate(
        {
            "model": {"backbone": "test_resnet"}, "findings": FINDINGS, "size": SIZE, "pixel_mean": 110.0,
            "pixel_deviation": 30.0, "phantom": False,
        }
    )  # fmt: skip
    return prepare(
        network.eval(), info, open_dataset(prepared), read_studies(prepared), calibration(), config
    )
