"""The step features: off unless asked for, and the bank that the second phase reads."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Run, set_params
from safetensors.torch import load_file

from ral.config.features import FeaturesConfig, FeaturesParams
from ral.data.dataset import open_dataset
from ral.inference.bank import FEATURES, INFO, BankInfo, bank_key, open_bank
from ral.training import refit
from ral.training.outputs import write_weights
from tasks import features

CPU = torch.device("cpu")


@pytest.fixture
def write(phantom_prepared: Path, phantom_trained: Path, tmp_path: Path) -> Callable[..., Path]:
    """Runs the step; returns its output folder."""

    def run(**config: object) -> Path:
        params = FeaturesParams(features=FeaturesConfig.model_validate({"threads": 1} | config))
        features.run(params, phantom_prepared, phantom_trained, tmp_path / "features")
        return tmp_path / "features"

    return run


def test_by_default_there_is_only_a_note(write: Callable[..., Path]) -> None:
    assert FeaturesParams().features.precision is None
    assert {path.name for path in write(precision="float32").iterdir()} == {FEATURES, INFO}
    assert [path.name for path in write().iterdir()] == ["not_written.txt"]
    assert {path.name for path in write(precision="float32").iterdir()} == {FEATURES, INFO}


def test_the_bank_has_the_features_of_all_splits_twice_the_same(
    write: Callable[..., Path], phantom_prepared: Path, phantom_trained: Path, tmp_path: Path
) -> None:
    dataset = open_dataset(phantom_prepared)
    for precision in ("float32", "float16"):
        out = write(precision=precision)
        info = BankInfo.read(out / INFO)
        assert info.key == bank_key(phantom_trained, dataset, precision)
        stored = np.load(out / FEATURES, mmap_mode="r")
        assert (stored.shape, stored.dtype) == ((len(dataset), info.width), precision)
        expected = open_bank(phantom_trained, dataset, tmp_path / "state", precision, CPU)
        assert (stored == expected).all()
        first = {path.name: path.read_bytes() for path in out.iterdir()}
        assert {path.name: path.read_bytes() for path in write(precision=precision).iterdir()} == first


def test_the_second_phase_reads_the_bank_of_its_model_and_data(
    write: Callable[..., Path],
    phantom_prepared: Path,
    phantom_trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    state = tmp_path / "state"
    monkeypatch.setenv("RAL_STATE_DIR", str(state))
    other = Path(shutil.copytree(phantom_trained, tmp_path / "models"))
    weights = load_file(other / "model.safetensors")
    weights["backbone.fc.bias"] += 1
    write_weights(other / "model.safetensors", weights, "images")
    out = write(precision="float32")

    def fit(*arguments: object) -> int:
        paths = ["--prepared", phantom_prepared, "--features", out, "--out", tmp_path / "fitted"]
        return refit.main([str(word) for word in ("oversample", *paths, *arguments)])

    assert fit("--models", phantom_trained) == 0
    assert not (state / "features").exists()  # nothing was computed
    assert fit("--models", phantom_trained, "--precision", "float16") == 0
    (computed,) = (state / "features").iterdir()
    assert BankInfo.read(computed / INFO).precision == "float16"
    # Of another model it is not used.
    assert fit("--models", other) == 0
    keys = {BankInfo.read(folder / INFO).key for folder in (state / "features").iterdir()}
    dataset = open_dataset(phantom_prepared)
    assert keys == {bank_key(phantom_trained, dataset, "float16"), bank_key(other, dataset, "float32")}


@pytest.mark.long
def test_an_experiment_computes_the_features_and_nothing_else(
    chain_done: Path, tmp_path: Path, run: Run
) -> None:
    folder = Path(shutil.copytree(chain_done, tmp_path / "project", symlinks=True))
    assert [path.name for path in (folder / "data/features").iterdir()] == ["not_written.txt"]
    models = (folder / "models/model.safetensors").read_bytes()
    printed = run("dvc", "exp", "run", "-S", "features.precision=float16", "features", cwd=folder).stdout
    done = [line.split("'")[1] for line in printed.splitlines() if line.startswith("Running stage")]
    assert set(done) == {"tasks/dvc.yaml:manifest", "features"}  # the first looks every time
    stored = np.load(folder / "data/features" / FEATURES, mmap_mode="r")
    assert stored.dtype == np.float16
    assert len(stored) == len(open_dataset(folder / "data/prepared"))
    assert (folder / "models/model.safetensors").read_bytes() == models
    run(
        sys.executable,
        "-m",
        "ral.training.refit",
        "crt",
        "--precision",
        "float16",
        "--out",
        "fitted",
        cwd=folder,
    )
    assert (folder / "fitted/second_phase.json").is_file()
    set_params(folder, {"features": {"precision": None}})
    run("dvc", "repro", "features", cwd=folder)
    assert [path.name for path in (folder / "data/features").iterdir()] == ["not_written.txt"]
