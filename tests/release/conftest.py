"""A registry with commits and small bundles, which the tests of the registry share."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from simulated_release import write_bundle

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
