"""Workspaces: a checkout that is nobody's, held by one run at a time, with a record that says what each night was made from."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import copy_project

from flows.nightly import push
from flows.workspace import BRANCH, Busy, commit_night, facts_of, git, hold, open_workspace, recorded
from ral.config.base import load
from ral.config.environment import Environment, FlowsTarget
from ral.config.params import Params
from ral.errors import UserError
from ral.runs import RUN_ID


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return copy_project(tmp_path / "source")


@pytest.fixture
def state(tmp_path: Path) -> Path:
    (tmp_path / "state").mkdir()
    return tmp_path / "state"


def test_changes_are_made_in_the_workspace_and_nowhere_else(source: Path, state: Path) -> None:
    before = (source / "params.yaml").read_text()
    made = open_workspace(state, "nightly", str(source), "HEAD", {"train.epochs": 5, "model.options": {}})
    params = load(made.folder / "params.yaml", Params)
    assert params.train.epochs == 5
    assert params.model.options == {}
    assert (source / "params.yaml").read_text() == before
    assert made.revision == git(source, "rev-parse", "HEAD")
    again = open_workspace(state, "nightly", str(source), "HEAD", {})
    assert load(again.folder / "params.yaml", Params) == load(source / "params.yaml", Params)


def test_uncommitted_changes_of_the_caller_do_not_enter(source: Path, state: Path) -> None:
    (source / "params.yaml").write_text("broken: [")
    made = open_workspace(state, "nightly", str(source), "HEAD", {})
    assert load(made.folder / "params.yaml", Params).train.epochs > 0


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"train.epochs": "five"}, "train.epochs"),
        ({"train.epoch": 5}, "Did you mean `epochs`"),
        ({"trian.epochs": 5}, "trian.epochs is no parameter"),
        ({"train.epochs.more": 5}, "no parameter"),
        ({"loss.name": "nonsense"}, "loss.name"),
    ],
)
def test_wrong_changes_are_refused(source: Path, state: Path, changes: dict, says: str) -> None:
    with pytest.raises(UserError, match=says):
        open_workspace(state, "nightly", str(source), "HEAD", changes)


def test_a_revision_is_a_branch_a_tag_or_a_commit(source: Path, state: Path) -> None:
    first = git(source, "rev-parse", "HEAD")
    git(source, "tag", "first")
    git(source, "checkout", "-qb", "other")
    (source / "README.md").write_text("other")
    git(source, "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qam", "other")
    for revision in ("first", first):
        assert open_workspace(state, "nightly", str(source), revision, {}).revision == first
    assert (
        open_workspace(state, "nightly", str(source), "other", {}).folder / "README.md"
    ).read_text() == "other"
    for revision in ("none", "--upload-pack=touch /tmp/x", "first; touch x"):
        with pytest.raises(UserError, match=r"no branch, tag or commit|no revision"):
            open_workspace(state, "nightly", str(source), revision, {})
    with pytest.raises(UserError, match="cannot be fetched"):
        open_workspace(state, "nightly", str(source / "nowhere"), "HEAD", {})


def test_outputs_stay_and_stray_files_go(source: Path, state: Path) -> None:
    made = open_workspace(state, "nightly", str(source), "HEAD", {})
    (made.folder / "models").mkdir()
    (made.folder / "models/model.json").write_text("{}")
    (made.folder / "stray.txt").write_text("left by a crash")
    (made.folder / ".git/index.lock").touch()
    open_workspace(state, "nightly", str(source), "HEAD", {})
    assert (made.folder / "models/model.json").exists()
    assert not (made.folder / "stray.txt").exists()


def test_a_night_is_recorded_once(source: Path, state: Path) -> None:
    made = open_workspace(state, "nightly", str(source), "HEAD", {"train.epochs": 5})
    assert recorded(made) is None
    (made.folder / "dvc.lock").write_text("schema: '2.0'\n")
    facts = {"revision": made.revision, "changes": {"train.epochs": 5}, "manifest": "0"}
    commit = commit_night(made, "one", facts)
    assert commit_night(made, "one again", facts) == commit == git(made.registry, "rev-parse", BRANCH)
    assert facts_of(made.registry, commit) == facts
    assert "epochs: 5" in git(made.registry, "show", f"{commit}:params.yaml")
    next_night = open_workspace(state, "nightly", str(source), "HEAD", {})
    assert (next_night.folder / "dvc.lock").read_text() == "schema: '2.0'\n"
    second = commit_night(next_night, "two", facts | {"manifest": "1"})
    assert git(made.registry, "rev-parse", f"{second}^1", f"{second}^2").split() == [commit, made.revision]
    assert git(source, "status", "--short") == ""


def test_an_upstream_that_does_not_answer_is_said(source: Path, state: Path, tmp_path: Path) -> None:
    made = open_workspace(state, "nightly", str(source), "HEAD", {})
    commit = commit_night(made, "one", {})
    upstream = tmp_path / "upstream.git"
    target = Environment(flows=FlowsTarget(push_git=str(upstream)))
    with pytest.raises(UserError, match="does not take the record"):
        push(made, target)
    git(tmp_path, "init", "-q", "--bare", str(upstream))
    push(made, target)
    assert git(upstream, "rev-parse", BRANCH) == commit
    push(made, Environment())  # none by default


def test_the_machine_is_no_part_of_the_record(
    source: Path, state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ral.toml").write_text('data_root = "/data"\n')
    made = open_workspace(state, "nightly", str(source), "HEAD", {})
    assert (made.folder / "ral.toml").read_text() == 'data_root = "/data"\n'
    commit = commit_night(made, "one", {})
    assert "ral.toml" not in git(made.registry, "ls-tree", "--name-only", commit).splitlines()
    (tmp_path / "ral.toml").unlink()
    assert not (open_workspace(state, "nightly", str(source), "HEAD", {}).folder / "ral.toml").exists()


def test_one_run_holds_a_workspace(state: Path) -> None:
    with hold(state, "nightly", "first", "0") as lost:
        assert lost is None
        with pytest.raises(Busy, match="first"), hold(state, "nightly", "second", "1"):
            pass
        with hold(state, "other", "third", "2"):
            pass
    with hold(state, "nightly", "second", "1") as lost:
        assert lost is None


HOLDER = """
import subprocess, sys, time
from pathlib import Path
from flows.workspace import hold
with hold(Path(sys.argv[1]), "nightly", "killed", "flow-run-of-killed"):
    child = subprocess.Popen(["sleep", "3600"], start_new_session=True)
    print(child.pid, flush=True)
    time.sleep(3600)
"""


def has_ended(pid: int) -> bool:
    """Whether a process is gone, or was not waited for yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_what_a_killed_run_left_is_found_and_ended(state: Path, wait_until) -> None:
    bystander = subprocess.Popen(["sleep", "3600"], cwd=state)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(state)], env=os.environ | {RUN_ID: "killed"}, stdout=subprocess.PIPE, text=True
    )  # fmt: skip
    try:
        child = int(holder.stdout.readline())
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        os.kill(child, 0)
        with hold(state, "nightly", "next", "1") as lost:
            assert lost == "flow-run-of-killed"
            wait_until(lambda: has_ended(child))
            assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()
        holder.stdout.close()
