"""The command that refits a classifier: a model whose logits are those of its network, for every method."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
import pytest
import torch

from ral.config.second_phase import SECOND_PHASE_OPTIONS, SecondPhaseMethod
from ral.data.dataset import open_dataset
from ral.files import read_json
from ral.inference.score import score_images
from ral.models.load import load_network
from ral.training import refit
from ral.training.second_phase.registry import METHODS


@pytest.fixture
def command(
    phantom_prepared: Path, phantom_trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., int]:
    """Runs the command with a state folder of its own."""
    monkeypatch.setenv("RAL_STATE_DIR", str(tmp_path / "state"))
    paths = ["--models", str(phantom_trained), "--prepared", str(phantom_prepared)]
    return lambda *arguments: refit.main([*arguments, *paths])


def test_the_command_offers_every_method() -> None:
    assert (*refit.METHODS, refit.PRESTO) == tuple(METHODS)
    assert tuple(METHODS) == tuple(SECOND_PHASE_OPTIONS) == get_args(SecondPhaseMethod)


def test_a_refitted_model_is_a_model(
    command: Callable[..., int], phantom_prepared: Path, phantom_trained: Path, tmp_path: Path
) -> None:
    out = tmp_path / "smote"
    assert command("smote", "--options", '{"neighbours": 2}', "--seed", "3", "--out", str(out)) == 0
    assert read_json(out / "second_phase.json")["options"]["neighbours"] == 2
    network, info = load_network(out)
    original, _ = load_network(phantom_trained)
    changed = {
        name for name, tensor in network.state_dict().items() if (tensor != original.state_dict()[name]).any()
    }
    assert {name.rsplit(".", 1)[1] for name in changed} == {"weight", "bias"}
    assert len(changed) == 2
    dataset = open_dataset(phantom_prepared)
    for split in ("val", "test"):
        table = pd.read_parquet(out / "logits" / f"{split}.parquet")
        rows = dataset.rows(split)
        assert table["image_id"].tolist() == dataset.studies["image_id"].iloc[rows].tolist()
        logits = score_images(network, dataset, info, rows, torch.device("cpu"))
        np.testing.assert_allclose(table[list(info.findings)].to_numpy(), logits, rtol=0, atol=1e-3)
    assert 0 < read_json(out / "validation.json")["val"]["ap"] <= 1
    files = {path.name: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert command("smote", "--options", '{"neighbours": 2}', "--seed", "3", "--out", str(out)) == 0
    assert files == {path.name: path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_features_alone_are_kept_in_the_state_folder(command: Callable[..., int], tmp_path: Path) -> None:
    assert command("features", "--precision", "float16") == 0
    (bank,) = (tmp_path / "state" / "features").iterdir()
    assert np.load(bank / "features.npy", mmap_mode="r").dtype == np.float16


def test_wrong_options_are_one_message(
    command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    assert command("smote", "--options", '{"neighbors": 2}', "--out", out) == 1
    assert "neighbors" in capsys.readouterr().err
    assert command("smote", "--options", "{", "--out", out) == 1
    assert "error: --options" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command("smote")
    assert not Path(out).exists()


def test_help_needs_no_heavy_import() -> None:
    code = "import sys; sys.argv = ['refit', '--help']; from ral.training import refit\n"
    code += "try: refit.main()\nexcept SystemExit: print('torch' in sys.modules, 'sklearn' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False False"
