"""Training with a loss and a network of the user's own, in processes of its own."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT, set_params
from own_classes import LOSS, NETWORK, write_classes
from trainings import TRAIN, outputs, rank, write_spec

from ral.config.environment import TrainingTarget
from ral.config.losses import LossConfig
from ral.config.model import ModelConfig
from ral.config.train import TrainConfig, TrainParams
from ral.errors import UserError
from ral.launch import launch
from ral.models.info import read_model_info
from ral.reporting import tables
from ral.training.checkpoint import training_fingerprint

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_classes(tmp_path)
    return tmp_path


def params(**changes: str) -> TrainParams:
    return TrainParams(
        model=ModelConfig(backbone=changes.get("backbone", NETWORK), options={"width": 8}),
        loss=LossConfig(
            name="custom", custom={"class_path": changes.get("loss", LOSS), "options": {"smoothing": 0.1}}
        ),
        train=TrainConfig.model_validate(TRAIN),
    )


def train(prepared: Path, out: Path, **changes: str) -> Path:
    launch(write_spec(prepared, out, params(**changes)), TrainingTarget(processes=1), out, rank())
    return out


def test_an_own_loss_and_network_are_trained_and_named(prepared: Path, project: Path) -> None:
    first = train(prepared, project / "first")
    metadata = json.loads((first / "model.json").read_text())
    assert metadata["loss"] == LOSS
    assert metadata["model"]["backbone"] == NETWORK
    assert list(metadata["network_code"]) == ["own/nets.py"]
    table = {row[0].text: row[1].text for row in tables.model(read_model_info(first), 2).rows}
    assert (table["Network"], table["Loss"]) == (NETWORK, LOSS)
    assert outputs(first) == outputs(train(prepared, project / "second"))


def test_a_mistake_ends_the_training_with_one_message(prepared: Path, project: Path) -> None:
    with pytest.raises(UserError, match=r"model\.backbone: .*nets\.py has no class Nothing"):
        train(prepared, project / "out", backbone="own.nets:Nothing")
    with pytest.raises(
        UserError, match=r"loss\.custom\.class_path: own\.none:Loss: there is no file own/none\.py"
    ):
        train(prepared, project / "out2", loss="own.none:Loss")


def test_the_files_are_part_of_the_fingerprint(prepared: Path, project: Path) -> None:
    before = training_fingerprint(params().model_dump(), prepared)
    for name in ("own/losses.py", "own/nets.py"):
        file = project / name
        file.write_text(file.read_text() + "\n# another line\n")
        after = training_fingerprint(params().model_dump(), prepared)
        assert after != before
        before = after
    (project / "own/unused.py").write_text("")
    assert training_fingerprint(params().model_dump(), prepared) == before


def test_manifest_records_the_files_in_use_only(fork: Run, project: Path) -> None:
    (project / "params.yaml").write_text((ROOT / "params.yaml").read_text())

    def recorded() -> dict:
        fork("tasks.manifest", cwd=project)
        return json.loads((project / "data/user_code.json").read_text())

    assert recorded() == {"loss": {}, "network": {}}
    set_params(project, {"loss": {"name": "custom", "custom": {"class_path": LOSS}}})
    with_loss = recorded()
    assert list(with_loss["loss"]) == ["own/losses.py"]
    assert with_loss["network"] == {}
    (project / "own/losses.py").write_text("# other\n")
    assert recorded() != with_loss
    set_params(project, {"loss": {"custom": {"class_path": "own.gone:Loss"}}})
    printed = fork("tasks.manifest", cwd=project, code=1).stdout
    assert "error: loss.custom.class_path: own.gone:Loss: there is no file own/gone.py" in printed


def test_the_check_of_parameters_tries_the_classes(fork: Run, project: Path) -> None:
    (project / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    set_params(
        project,
        {
            "loss": {"name": "custom", "custom": {"class_path": LOSS}},
            "model": {"backbone": NETWORK, "options": {"width": 8}},
        },
    )
    assert "is valid" in fork("ral.config", cwd=project).stdout
    set_params(project, {"model": {"options": {"depth": 8}}})
    printed = fork("ral.config", cwd=project, code=1).stdout
    assert "unexpected keyword argument 'depth'" in printed
    assert "Traceback" not in printed
