"""Small trainings for the tests: parameters, prepared images, real processes."""

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pandas as pd
from conftest import ROOT, SMALL, set_params
from forks import forks
from ruamel.yaml import YAML

from ral.config.base import load
from ral.config.dask import DaskTarget
from ral.config.data import DataConfig, PreprocessConfig, PreprocessParams, SplitConfig
from ral.config.environment import TrainingTarget
from ral.config.evaluate import EvaluateParams
from ral.config.losses import LossConfig
from ral.config.model import ModelConfig
from ral.config.train import TrainConfig, TrainParams
from ral.data.images.locate import list_images
from ral.data.prepare import prepare
from ral.files import write_json
from ral.launch import launch
from ral.training.spec import TrainSpec
from tasks import evaluate

# With layer norm images of a batch do not interact, so splitting the batch changes only rounding.
SEPARABLE = ModelConfig(backbone="test_convnext")
BATCH_NORM = ModelConfig(backbone="test_resnet")

TRAIN = {
    "epochs": 2, "batch_size": 32, "learning_rate": 1e-3, "threads": 1, "ema_decay": 0.9,
    "augment": {"flip": 0.5, "rotate": 5.0, "shift": 0.05, "zoom": 0.1},
}  # fmt: skip

OUTPUTS = (
    "model.safetensors", "weights/last.safetensors", "weights/ema.safetensors", "model.json", "validation.json",
    "history.csv", "logits/val.parquet", "logits/test.parquet",
)  # fmt: skip

RANK = (sys.executable, "-m", "ral.training")


def rank() -> tuple[str, ...]:
    """The command of a rank: a fork of a process that has imported torch, or on a GPU a fresh process."""
    return RANK if os.environ.get("CUDA_VISIBLE_DEVICES") != "" else forks().command("ral.training")


def prepare_phantom(images: Path, folder: Path, dask: DaskTarget = DaskTarget(workers=2)) -> Path:  # noqa: B008
    """Prepare phantom images at 32 pixels in shards of 100."""
    data = DataConfig(source="nih", root=str(images), missing_images="fail", views=["PA", "AP"])
    split = SplitConfig(method="official", val=0.2, test=0.2, seed=0)
    listed, _ = list_images(images, lambda _: None)
    params = PreprocessParams(data=data, split=split, preprocess=PreprocessConfig(size=32, shard_images=100))
    prepare(params, listed, folder, dask, lambda _: None)
    return folder


def params(model: ModelConfig = SEPARABLE, loss: str | LossConfig = "ral", **changes: Any) -> TrainParams:
    """The parameters above with changes to the section train; `loss` is its name, or the section."""
    section = LossConfig(name=loss) if isinstance(loss, str) else loss  # type: ignore[arg-type]
    return TrainParams(model=model, loss=section, train=TrainConfig.model_validate(TRAIN | changes))


def write_params(folder: Path, params: TrainParams) -> None:
    """Write the params.yaml of the step train; evaluate as in the project's own."""
    evaluate = YAML(typ="safe").load((ROOT / "params.yaml").read_text())["evaluate"]
    with (folder / "params.yaml").open("w") as stream:
        YAML().dump(params.model_dump() | {"evaluate": evaluate | {"min_positives": 1}}, stream)


def write_spec(prepared: Path, out: Path, params: TrainParams, minutes: float = 10.0, keep: int = 2) -> Path:
    """Write the specification of the ranks; state_dir is beside `out`, so that another run with the same
    `out` resumes.
    """
    out.mkdir(exist_ok=True)
    spec = out / "spec.json"
    TrainSpec(
        params=params, prepared=prepared, out=out, run=out, state_dir=out.with_name(out.name + ".state"),
        failure=out / "rank_failure.json", checkpoint_minutes=minutes, keep=keep, tensorboard=False, dvclive=False,
        min_positives=1,
    ).write(spec)  # fmt: skip
    return spec


def train(
    prepared: Path, out: Path, processes: int = 1, minutes: float = 10.0, command: tuple[str, ...] | None = None,
    model: ModelConfig = SEPARABLE, loss: str | LossConfig = "ral", **changes: Any,
) -> Path:  # fmt: skip
    """Train into `out` and wait."""
    spec = write_spec(prepared, out, params(model, loss, **changes), minutes)
    launch(spec, TrainingTarget(processes=processes), out, command or rank())
    return out


def evaluate_phantom(folder: Path, prepared: Path, trained: Path) -> None:
    """Write a project folder from its prepared data and its training; report and card are stubs."""
    (folder / "data/validated").mkdir(parents=True)
    shutil.copytree(prepared, folder / "data/prepared")
    shutil.copytree(trained, folder / "models")
    shutil.copy(ROOT / "params.yaml", folder)
    set_params(folder, SMALL)
    paths = (folder / name for name in ("data/prepared", "models/logits", "baseline", "reports"))
    evaluate.run(load(folder / "params.yaml", EvaluateParams), *paths)
    for name in ("reports/report.html", "reports/model_card.md", "dvc.lock"):
        (folder / name).write_text(name)
    write_json(folder / "data/manifest.json", {"files": {}})
    write_json(
        folder / "data/validated/validation.json", {"passed": True, "checks": [], "profile": {"rows": 1}}
    )


def outputs(folder: Path) -> dict[str, bytes]:
    """Bytes of all outputs of a training."""
    return {name: (folder / name).read_bytes() for name in OUTPUTS}


def steps(folder: Path) -> pd.Series:
    """Loss of every optimizer step."""
    return pd.read_csv(folder / "steps.csv")["loss"]


def history(folder: Path) -> pd.DataFrame:
    """A row per epoch."""
    return pd.read_csv(folder / "history.csv")
