"""`dvc artifacts get` finds the champion's weights in the registry's repository and in the DVC remote."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from ruamel.yaml import YAML
from simulated_release import write_bundle

from ral.release.registry import ARTIFACT, Registry

STAGE = """\
stages:
  train:
    cmd: mkdir -p models && cp weights.txt models/model.safetensors
    deps: [weights.txt]
    outs: [models/model.safetensors]
"""


def run(folder: Path, *command: str) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def dvc(folder: Path, *command: str) -> str:
    return run(folder, sys.executable, "-m", "dvc", *command)


@pytest.fixture
def artifacts() -> dict:
    """The section of the project's own dvc.yaml."""
    return YAML(typ="safe", pure=True).load(ROOT / "dvc.yaml")["artifacts"]


def test_artifact_is_the_model_that_the_registry_tags(artifacts: dict) -> None:
    assert artifacts[ARTIFACT]["path"] == "models/model.safetensors"


def test_the_champion_is_fetched(tmp_path: Path, artifacts: dict) -> None:
    registry, storage, work = Registry(tmp_path / "state"), tmp_path / "storage", tmp_path / "work"
    work.mkdir()
    run(work, "git", "init", "-q")
    dvc(work, "init", "-q")
    with (work / "dvc.yaml").open("w") as stream:
        stream.write(STAGE)
        YAML(typ="safe", pure=True).dump({"artifacts": artifacts}, stream)
    versions = []
    for text in ("first", "second"):
        (work / "weights.txt").write_text(text)
        dvc(work, "repro", "-q")
        run(work, "git", "add", "-A")
        run(work, "git", "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", text)
        run(work, "git", "push", "-q", str(registry.repository), "HEAD:refs/heads/nightly")
        commit = run(work, "git", "rev-parse", "HEAD")
        draft = registry.state_dir / text
        draft.mkdir()
        (draft / "model").write_text(text)
        write_bundle(draft, ["model"], commit=commit)
        versions.append(registry.register(commit, draft))
        registry.promote(versions[-1], "t", "better")
        # As flows.push_dvc does it: from the configuration of this copy only.
        dvc(work, "remote", "add", "-q", "--local", "--force", "state", str(storage))
        dvc(work, "push", "-q", "-r", "state")

    def get(*selection: str) -> str:
        dvc(
            tmp_path, "artifacts", "get", str(registry.repository), ARTIFACT, *selection, "-o", "got", "--force",
            "--remote", "state", "--remote-config", f"url={storage}",
        )  # fmt: skip
        return (tmp_path / "got").read_text()

    assert get("--stage", "champion") == "second"
    assert get("--rev", versions[0]) == "first"
    registry.rollback("t", "worse after all")
    assert get("--stage", "champion") == "first"
