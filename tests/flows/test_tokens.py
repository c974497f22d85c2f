"""A token in an address is in no message, log line or record."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT, copy_project

from flows.nightly import push
from flows.settings import FlowsConfig, FlowsEnvironment
from flows.workspace import RunInputs, commit_run, git, open_workspace
from ral.errors import UserError

SECRET = "http://me:hunter2@127.0.0.1:1/x.git"  # nothing listens there


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return copy_project(tmp_path / "source")


def test_a_token_in_an_address_is_never_told(source: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    made = open_workspace(state, "nightly", str(source), "HEAD", {})
    commit_run(made, "one", RunInputs(revision="0", changes={}, manifest="0"))
    errors = []
    with pytest.raises(UserError) as error:
        push(made, FlowsEnvironment(flows=FlowsConfig(push_git=SECRET)))
    errors.append(str(error.value))
    with pytest.raises(UserError) as error:
        open_workspace(state, "nightly", SECRET, "HEAD", {})
    errors.append(str(error.value))
    with pytest.raises(subprocess.CalledProcessError) as failed:
        git(source, "fetch", SECRET)
    errors += [str(failed.value), failed.value.stderr]
    for text in errors:
        assert "http://127.0.0.1:1/x.git" in text
        assert "hunter2" not in text
        assert "me:" not in text


def test_a_flow_keeps_a_token_to_itself(
    source: Path, tmp_path: Path, run: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    (source / "ral.toml").write_text(f"state_dir = '{tmp_path / 'private'}'\nflows.repository = '{SECRET}'\n")
    home = {"PREFECT_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT), "RAL_STATE_DIR": ""}
    printed = run(sys.executable, "-m", "flows.nightly", cwd=source, code=1, **home).stdout
    assert "http://127.0.0.1:1/x.git: cannot fetch the project." in printed
    assert "hunter2" not in printed
    kept = [path for path in (tmp_path / "home").rglob("*") if path.is_file()]
    assert any(
        "cannot fetch the project" in path.read_bytes().decode("latin-1") for path in kept
    )  # Prefect's database
    assert not [path for path in kept if b"hunter2" in path.read_bytes()]
