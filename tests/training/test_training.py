"""Real DeepSpeed processes on small data: same bytes twice, processes only share the work, errors for people."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from ral.config.data import DataConfig, PreprocessConfig, PreprocessParams, SplitConfig
from ral.config.environment import TrainingTarget
from ral.config.losses import LossConfig
from ral.config.train import AugmentConfig, ModelConfig, TrainConfig, TrainParams
from ral.data.films import list_films
from ral.data.prepare import prepare
from ral.errors import UserError
from ral.files import write_json
from ral.launch import launch

TRAIN = TrainConfig(
    epochs=2, batch_size=32, learning_rate=1e-3, weight_decay=0.05, warmup=0.1, clip_norm=1.0,
    precision="float32", zero_stage=0, threads=1, seed=0,
    augment=AugmentConfig(flip=0.5, rotate=5.0, shift=0.05, zoom=0.1),
)  # fmt: skip
# Layer norm keeps films of a batch apart, so that sharing the batch out changes nothing but rounding.
SEPARABLE = ModelConfig(backbone="test_convnext")


@pytest.fixture(scope="module")
def prepared(small_phantom: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    data = DataConfig(source="nih", root=str(small_phantom), missing_films="fail", views=["PA", "AP"])
    split = SplitConfig(method="official", val=0.2, test=0.2, seed=0)
    films, _ = list_films(small_phantom, lambda _: None)
    params = PreprocessParams(data=data, split=split, preprocess=PreprocessConfig(size=32, shard_films=100))
    prepare(params, films, folder, 2, lambda _: None)
    return folder


def train(prepared: Path, out: Path, processes: int = 1, model: ModelConfig = SEPARABLE, **changes) -> Path:
    out.mkdir()
    params = TrainParams(model=model, loss=LossConfig(name="ral"), train=TRAIN.model_copy(update=changes))
    spec = out / "spec.json"
    write_json(spec, specification(params, prepared, out))
    launch(spec, TrainingTarget(processes=processes), out)
    return out


def specification(params: TrainParams, prepared: Path, out: Path) -> dict:
    return {
        "params": params.model_dump(),
        "prepared": str(prepared),
        "out": str(out),
        "failure": str(out / "error.txt"),
        "state_dir": str(out / "state"),
        "run": str(out),
    }


def outputs(folder: Path) -> dict[str, bytes]:
    names = ["model.safetensors", "model.json", "history.csv", "logits/val.parquet", "logits/test.parquet"]
    return {name: (folder / name).read_bytes() for name in names}


def test_same_bytes_twice_and_another_seed_differs(prepared: Path, tmp_path: Path) -> None:
    first, second = (outputs(train(prepared, tmp_path / name)) for name in ("a", "b"))
    assert first == second
    assert outputs(train(prepared, tmp_path / "c", seed=1))["history.csv"] != first["history.csv"]


def test_every_film_is_scored_once_and_the_best_weights_are_kept(prepared: Path, tmp_path: Path) -> None:
    out = train(prepared, tmp_path / "out")
    studies = pd.read_parquet(prepared / "studies.parquet")
    for split in ("val", "test"):
        logits = pd.read_parquet(out / f"logits/{split}.parquet")
        assert logits["image_id"].tolist() == studies["image_id"][studies["split"] == split].tolist()
        assert (logits.dtypes.iloc[1:] == np.float32).all()
        assert np.isfinite(logits.iloc[:, 1:]).all().all()
    facts = json.loads((out / "model.json").read_text())
    history = pd.read_csv(out / "history.csv")
    assert facts["best_epoch"] == history["epoch"][history["val_macro_ap"].idxmax()]
    assert facts["phantom"] is True
    assert list(history) == [
        "epoch",
        "learning_rate",
        "train_loss",
        "val_macro_ap",
        "val_macro_auroc",
        "data",
    ]
    assert json.loads((out / "validation.json").read_text())["val"]["epoch"] == facts["best_epoch"]


@pytest.mark.parametrize(
    ("processes", "changes"),
    [(1, {"micro_batch": 8}), (2, {}), (2, {"micro_batch": 8, "zero_stage": 1}), (1, {"zero_stage": 2})],
)
def test_sharing_the_batch_out_changes_only_rounding(
    prepared: Path, tmp_path: Path, processes: int, changes: dict
) -> None:
    one = pd.read_csv(train(prepared, tmp_path / "one") / "history.csv")
    other = pd.read_csv(train(prepared, tmp_path / "other", processes, **changes) / "history.csv")
    np.testing.assert_allclose(other["train_loss"], one["train_loss"], rtol=1e-4)


def test_bfloat16_trains_close_to_float32(prepared: Path, tmp_path: Path) -> None:
    full = pd.read_csv(train(prepared, tmp_path / "full") / "history.csv")
    half_run = train(prepared, tmp_path / "half", precision="bfloat16", zero_stage=1)
    half = pd.read_csv(half_run / "history.csv")
    np.testing.assert_allclose(half["train_loss"], full["train_loss"], rtol=0.05)
    assert {array.dtype.name for array in load_file(half_run / "model.safetensors").values()} <= {
        "float32",
        "int64",
    }


def test_weights_are_readable_by_all_and_no_pickle(prepared: Path, tmp_path: Path) -> None:
    out = train(prepared, tmp_path / "out", epochs=1)
    assert (out / "model.safetensors").stat().st_mode & 0o777 == 0o644
    with safe_open(out / "model.safetensors", "numpy") as weights:
        assert weights.metadata() == {"trained_on": "phantom; research, not a medical device"}
    assert not list(out.rglob("*.pt")) + list(out.rglob("*.bin"))


@pytest.mark.parametrize(
    ("model", "processes", "changes", "words"),
    [
        (ModelConfig(backbone="resnet10x"), 1, {}, "no model `resnet10x`"),
        (ModelConfig(backbone="test_resnet", options={"wings": 2}), 1, {}, "cannot be built with"),
        (SEPARABLE, 1, {"batch_size": 4096}, "larger than the"),
        (SEPARABLE, 2, {"batch_size": 33}, "must be a multiple of the 2 processes"),
        (SEPARABLE, 1, {"learning_rate": 1e30, "clip_norm": 1e30}, "became infinite or no number"),
    ],
)
def test_errors_are_for_people(
    prepared: Path, tmp_path: Path, model: ModelConfig, processes: int, changes: dict, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        train(prepared, tmp_path / "out", processes, model, **changes)


def test_a_dead_rank_ends_the_others(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = subprocess.Popen.__init__

    def kill_second(self, command, *arguments, **options) -> None:
        env = options.get("env") or {}
        start(self, command, *arguments, **options)
        if env.get("RANK") == "1":
            self.kill()

    monkeypatch.setattr(subprocess.Popen, "__init__", kill_second)
    with pytest.raises(UserError, match=r"Training process 1 of 2 on .* ended with signal 9"):
        train(prepared, tmp_path / "out", 2, epochs=50)
    assert not _ranks(str(tmp_path))


def test_ranks_end_with_a_killed_launcher(
    prepared: Path, tmp_path: Path, environment: dict[str, str], wait_until: Callable
) -> None:
    params = TrainParams(
        model=SEPARABLE, loss=LossConfig(name="ral"), train=TRAIN.model_copy(update={"epochs": 500})
    )
    write_json(tmp_path / "spec.json", specification(params, prepared, tmp_path))
    script = (
        "from pathlib import Path; from ral.launch import launch; "
        "from ral.config.environment import TrainingTarget; "
        f"folder = Path({str(tmp_path)!r}); launch(folder / 'spec.json', TrainingTarget(processes=2), folder)"
    )
    launcher = subprocess.Popen(["python", "-c", script], env=environment, stderr=subprocess.DEVNULL)
    wait_until(lambda: len(_ranks(str(tmp_path))) == 2)
    os.kill(launcher.pid, 9)
    launcher.wait()
    wait_until(lambda: not _ranks(str(tmp_path)))


def _ranks(word: str = "ral.training") -> set[int]:
    import psutil

    found = set()
    for process in psutil.process_iter(["cmdline", "status"]):
        command = " ".join(process.info["cmdline"] or [])
        if (
            "-m ral.training" in command
            and word in command
            and process.info["status"] != psutil.STATUS_ZOMBIE
        ):
            found.add(process.pid)
    return found
