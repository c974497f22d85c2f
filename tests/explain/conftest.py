"""A small network and prepared images, made without training; some image ids look like paths."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from prepared_data import dataset_info

from ral.config.model import ModelConfig
from ral.data.dataset import Dataset, open_dataset
from ral.data.dataset_info import Shard
from ral.data.images.shards import write_shard
from ral.files import write_json
from ral.models import build_model
from ral.training.outputs import write_weights

FINDINGS = ["Effusion", "Mass", "Hernia"]  # no test image has a Hernia
SIZE = 64
MODELS = {
    "test_resnet": {},
    "test_convnext": {},
    "test_vit": {"img_size": SIZE},
}


def write_prepared(folder: Path, images: int = 72, phantom: bool = False) -> Path:
    """Prepared data of noise: two thirds train, one third test; some labels unknown, ids that are invalid
    file names.
    """
    rng = np.random.default_rng(0)
    ids = [f"{'phantom' * phantom}../../<script>{i:03d}" for i in range(images)]
    labels = (rng.random((images, 3)) < 0.4).astype(np.float32)
    split = np.array(["train"] * (images * 2 // 3) + ["test"] * (images - images * 2 // 3))
    labels[split == "test", 2] = 0
    labels[rng.random((images, 3)) < 0.1] = np.nan
    table = pd.DataFrame(labels, columns=FINDINGS)
    table.insert(0, "image_id", ids)
    table.insert(1, "patient_id", [f"p{i // 2}" for i in range(images)])
    table.insert(2, "split", split)
    (folder / "shards").mkdir(parents=True)
    table.to_parquet(folder / "studies.parquet", index=False)
    pixels = rng.integers(0, 256, (images, SIZE, SIZE), dtype=np.uint8)
    write_shard(folder / "shards/0.arrow", ids, pixels)
    shard = Shard(name="0.arrow", images=images, sha256="")
    dataset_info(SIZE, [shard], FINDINGS, phantom=phantom).write(folder / "dataset.json")
    write_json(folder / "class_counts.json", {})
    return folder


def write_model(
    folder: Path, dataset: Dataset, backbone: str = "test_resnet", head: str = "linear", **changes: Any
) -> Path:
    """Outputs of the step train, with random weights and random logits."""
    options = {"options": MODELS.get(backbone, {}), "ml_decoder": {"embedding": 32}, "head": head}
    config = ModelConfig.model_validate({"backbone": backbone, **options, **changes})
    torch.manual_seed(0)
    weights = build_model(config.model_copy(update={"pretrained": "none"}), len(FINDINGS)).state_dict()
    (folder / "logits").mkdir(parents=True)
    write_weights(folder / "model.safetensors", weights, "images")
    write_json(
        folder / "model.json",
        {
            "model": config.model_dump(), "findings": FINDINGS, "size": SIZE, "pixel_mean": 127.5,
            "pixel_deviation": 74.0, "phantom": dataset.info.phantom,
        },
    )  # fmt: skip
    test = dataset.studies.loc[dataset.studies["split"] == "test", "image_id"]
    logits = np.random.default_rng(1).normal(size=(len(test), 3)).astype(np.float32)
    table = pd.DataFrame(logits, columns=FINDINGS)
    table.insert(0, "image_id", test.to_numpy())
    table.to_parquet(folder / "logits/test.parquet", index=False)
    return folder


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """A folder of prepared data."""
    return write_prepared(tmp_path / "prepared")


@pytest.fixture
def make_model(prepared: Path, tmp_path: Path) -> Callable[..., Path]:
    """Writes a model of `prepared` and returns its folder."""
    return lambda *args, **changes: write_model(tmp_path / "models", open_dataset(prepared), *args, **changes)
