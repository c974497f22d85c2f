"""register and prune, killed before each write to the disk, lose nothing; the same command then completes the work."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import ROOT, set_params
from simulated_release import gate_decision

from ral.files import write_json
from ral.release.registry import Registry
from ral.training.outputs import write_weights


@pytest.fixture
def base(
    tmp_path: Path, registry: Registry, commit: Callable[[str], str], release: Callable[[str], str]
) -> Path:
    """Three releases, the first of which is the champion, and a run to register as the fourth."""
    project = tmp_path / "project"
    for name in ("reports", "models", "data/prepared", "data/validated"):
        (project / name).mkdir(parents=True)
    for name in (
        "reports/report.html", "reports/model_card.md", "reports/findings.csv", "data/prepared/split.parquet", "dvc.lock",
    ):  # fmt: skip
        (project / name).write_text(name)
    write_json(project / "reports/metrics.json", {})
    write_json(project / "reports/calibration.json", {})
    write_json(project / "data/manifest.json", {})
    write_json(project / "data/validated/validation.json", {"profile": {}})
    write_json(project / "models/model.json", {"phantom": True, "findings": ["Mass"]})
    write_weights(project / "models/model.safetensors", {"w": torch.zeros(2)}, "phantom")
    shutil.copy(ROOT / "params.yaml", project)
    set_params(project, {"gate": {"keep": 1}})
    for text in ("one", "two", "three"):
        release(text)
    registry.promote("v0.1.0", "test", "the first")
    (tmp_path / "commit").write_text(commit("last"))
    gate_decision("last", champion="v0.1.0").write(tmp_path / "decision.json")
    return tmp_path


@pytest.mark.long
@pytest.mark.parametrize("what", ["register", "prune"])
def test_killed_at_every_point_nothing_is_lost(
    base: Path, tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str], what: str
) -> None:
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("killing.py")), what, str(base), str(tmp_path_factory.mktemp("work"))],
        env=environment | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.splitlines()[-1]) > 20, "it was killed often enough"
