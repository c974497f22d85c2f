"""A registry with commits and small bundles, and the commands on a small trained model."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import set_params
from simulated_release import PASSED, Ral, write_bundle

from ral.files import write_json
from ral.release.__main__ import main
from ral.release.registry import Registry


def git(folder: Path, *arguments: str) -> str:
    """Output of a git command."""
    command = ["git", "-c", "user.name=test", "-c", "user.email=test@example.org", *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "state")


@pytest.fixture
def commit(tmp_path: Path, registry: Registry) -> Callable[[str], str]:
    """Make a commit and push it into the registry's repository, as the flow does."""
    folder = tmp_path / "work"
    folder.mkdir()
    git(folder, "init", "-q")

    def make(text: str) -> str:
        (folder / "dvc.lock").write_text(text)
        git(folder, "add", "-A")
        git(folder, "commit", "-qm", text)
        git(folder, "push", "-q", str(registry.repository), "HEAD:refs/heads/nightly")
        return git(folder, "rev-parse", "HEAD")

    return make


@pytest.fixture
def draft(registry: Registry) -> Callable[..., Path]:
    """A bundle of a commit, with one file."""

    def make(commit: str, text: str = "a model") -> Path:
        folder = registry.state_dir / f"draft-{commit[:8]}"
        folder.mkdir()
        (folder / "model").write_text(text)
        write_bundle(folder, ["model"], commit=commit)
        return folder

    return make


@pytest.fixture
def release(
    registry: Registry, commit: Callable[[str], str], draft: Callable[..., Path]
) -> Callable[[str], str]:
    """Register a release and give its version."""

    def make(text: str) -> str:
        made = commit(text)
        return registry.register(made, draft(made, text))

    return make


@pytest.fixture(scope="session")
def trained(phantom_evaluated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace after a whole run; report, card and metrics are stubs. Copy it."""
    folder = Path(shutil.copytree(phantom_evaluated, tmp_path_factory.mktemp("trained") / "project"))
    (folder / "baseline").mkdir()
    set_params(folder, {"evaluate": {"sealed": 0.3}})
    estimates = {"ap": (0.412, 0.38, 0.451), "auroc": (0.7, None, None)}
    means = {
        name: dict(zip(("value", "low", "high", "findings"), (*values, 3), strict=True))
        for name, values in estimates.items()
    }
    metrics = {
        "data": "phantom", "test": {"rows": 9, "patients": 9}, "macro": means | {"findings": 3},
        "micro": means | {"findings": 3}, "tiers": {}, "cxr_lt": {}, "not_estimable": {}, "confidence": 0.95,
        "interval": "bca", "replicates": 100,
    }  # fmt: skip
    write_json(folder / "reports/metrics.json", metrics)
    PASSED.write(folder / "data/validated/validation.json")
    return folder


@pytest.fixture
def project(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "project"))


@pytest.fixture
def ral(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Ral:
    """Run a command on the registry of the test and return what it printed."""

    def run(command: str, *arguments: object) -> str:
        state = ["--state", str(tmp_path / "state")]
        capsys.readouterr()
        assert main([command, *map(str, arguments), *state]) == 0
        return capsys.readouterr().out

    return run
