"""The pages "Your own loss or network" and "224 px from pretrained weights": their commands run, with small data."""

import json
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT, SMALL, copy_project, set_params
from own_classes import LOSS, NETWORK, page, write_classes

from ral.config.base import load
from ral.config.params import Params
from ral.models import import_timm, require_backbone

Run = Callable[..., subprocess.CompletedProcess[str]]


def commands(text: str) -> list[list[str]]:
    """The lines of a page that run an experiment, as words."""
    return [shlex.split(line) for line in text.splitlines() if line.startswith("dvc exp run ")]


def commit(folder: Path, run: Run) -> None:
    run("git", "add", "-A", cwd=folder)
    author = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    run("git", *author, "commit", "-qm", "own", cwd=folder)


@pytest.mark.parametrize("name", ["pretrained_224.md", "own_loss_or_network.md"])
def test_the_commands_of_a_page_are_valid(tmp_path: Path, name: str) -> None:
    from dvc.utils.hydra import apply_overrides

    found = commands((ROOT / "docs" / name).read_text())
    assert len(found) >= 2
    for command in found:
        path = tmp_path / "params.yaml"
        path.write_text((ROOT / "params.yaml").read_text())
        apply_overrides(path, [word for word in command[3:] if not word.startswith("-")])
        model = load(path, Params).model
        if ":" not in model.backbone:
            require_backbone(model.backbone, import_timm())


@pytest.mark.long
def test_an_own_loss_and_network_to_the_report(run: Run, tmp_path: Path) -> None:
    project = copy_project(tmp_path / "project")
    set_params(project, SMALL)
    write_classes(project)
    commit(project, run)
    for command in commands(page()):
        run(*command, cwd=project)
    assert "is valid" in run("python", "-m", "ral.config", cwd=project).stdout
    for path in ("reports/report.html", "reports/model_card.md"):
        text = (project / path).read_text()
        assert LOSS in text
    assert NETWORK in (project / "reports/report.html").read_text()

    def stale() -> set[str]:
        run("dvc", "repro", "tasks/dvc.yaml:manifest", cwd=project)
        return set(json.loads(run("dvc", "status", "--json", cwd=project).stdout))

    assert "train" not in stale()
    for name in ("losses", "nets"):
        file = project / f"own/{name}.py"
        before = file.read_text()
        file.write_text(before + "\n# another line\n")
        assert "train" in stale()
        file.write_text(before)
        assert "train" not in stale()
    # A queued experiment has committed files only; a class that is not there is one message.
    (project / "own/new.py").write_text((project / "own/losses.py").read_text())
    setting = "loss.custom.class_path=own.new:SmoothBCE"
    failed = run("dvc", "exp", "run", "--temp", "-S", setting, cwd=project, code=None)
    assert failed.returncode
    assert "there is no file own/new.py in the project folder" in failed.stdout
    assert "commit it" in failed.stdout


@pytest.mark.long
def test_224_pixels_from_a_file_of_weights(run: Run, tmp_path: Path) -> None:
    """The command without network access, with a smaller network of the same family and few images."""
    import torch
    from safetensors.torch import save_file

    project = copy_project(tmp_path / "project")
    set_params(project, SMALL)
    (project / "weights").mkdir()
    torch.manual_seed(0)
    backbone = import_timm().create_model("test_convnext", num_classes=1000)
    save_file(backbone.state_dict(), project / "weights/convnext_tiny.safetensors")
    text = (ROOT / "docs/pretrained_224.md").read_text()
    (command,) = (words for words in commands(text) if any("weights/convnext" in word for word in words))
    smaller = {
        "model.backbone": "test_convnext", "train.precision": "float32", "train.compile": "false",
        "train.batch_size": "32",
    }  # fmt: skip
    words = [f"{word.partition('=')[0]}={smaller.get(word.partition('=')[0], word.partition('=')[2])}"
             if "=" in word else word for word in command]  # fmt: skip
    run(*words, cwd=project)
    metadata = json.loads((project / "models/model.json").read_text())
    assert metadata["size"] == 224
    assert metadata["pretrained_sha256"] in (project / "reports/report.html").read_text()
    assert "grad_cam" in (project / "reports/gallery/gallery.json").read_text()
