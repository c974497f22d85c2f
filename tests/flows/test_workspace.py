"""Workspaces: a checkout that is nobody's, held by one run at a time, with a record that says what each night
was made from.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import copy_project
from simulated_release import decided, write_bundle

from flows.nightly import install_baseline, push
from flows.settings import FlowsConfig, FlowsEnvironment
from flows.workspace import (
    BRANCH,
    LEDGER_BRANCH,
    RunInputs,
    WorkspaceLockedError,
    commit_run,
    git,
    last_recorded_commit,
    load_run_inputs,
    lock_workspace,
    open_workspace,
)
from ral.config.base import load
from ral.config.params import Params
from ral.errors import UserError
from ral.files import locked
from ral.release.ledger import Ledger
from ral.release.registry import LOCK, Registry, Release
from ral.runs import RUN_ID

INPUTS = RunInputs(revision="0", changes={}, manifest="0")


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
        ({"train.epoch": 5}, "train.epoch is not a parameter. Did you mean `train.epochs"),
        ({"trian.epochs": 5}, "trian.epochs is not a parameter. Did you mean `train.epochs"),
        ({"train.epochs.more": 5}, "not a parameter"),
        ({"train.classifier.epochs": 5}, "set train.classifier whole"),
        ({"train.sampler": 5}, "train.sampler is a section: set its keys, such as train.sampler.name"),
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
    for revision, told in (
        ("none", "has no branch, tag or commit 'none'"),
        ("--upload-pack=touch /tmp/x", "'--upload-pack=touch /tmp/x' is not a valid revision"),
        ("first; touch x", "has no branch, tag or commit 'first; touch x'"),
    ):
        with pytest.raises(UserError, match=re.escape(told)):
            open_workspace(state, "nightly", str(source), revision, {})
    with pytest.raises(UserError, match="cannot fetch the project"):
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


@pytest.mark.parametrize("text", ['{"revision": "0"}', '{"of": "another version"}', "{"])
def test_inputs_that_another_version_recorded_count_as_changed(source: Path, text: str) -> None:
    (source / "nightly.json").write_text(text)
    git(source, "add", "nightly.json")
    git(source, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "inputs")
    assert load_run_inputs(source, "HEAD") is None


def test_a_night_is_recorded_once(source: Path, state: Path) -> None:
    made = open_workspace(state, "nightly", str(source), "HEAD", {"train.epochs": 5})
    assert last_recorded_commit(made) is None
    (made.folder / "dvc.lock").write_text("schema: '2.0'\n")
    facts = RunInputs(revision=made.revision, changes={"train.epochs": 5}, manifest="0")
    commit = commit_run(made, "one", facts)
    assert commit_run(made, "one again", facts) == commit == git(made.registry, "rev-parse", BRANCH)
    assert load_run_inputs(made.registry, commit) == facts
    assert "epochs: 5" in git(made.registry, "show", f"{commit}:params.yaml")
    next_night = open_workspace(state, "nightly", str(source), "HEAD", {})
    assert (next_night.folder / "dvc.lock").read_text() == "schema: '2.0'\n"
    second = commit_run(next_night, "two", facts.model_copy(update={"manifest": "1"}))
    assert git(made.registry, "rev-parse", f"{second}^1", f"{second}^2").split() == [commit, made.revision]
    assert git(source, "status", "--short") == ""


def test_an_upstream_that_does_not_answer_is_said(source: Path, state: Path, tmp_path: Path) -> None:
    made = open_workspace(state, "nightly", str(source), "HEAD", {})
    commit = commit_run(made, "one", INPUTS)
    upstream = tmp_path / "upstream.git"
    target = FlowsEnvironment(flows=FlowsConfig(push_git=str(upstream)))
    with pytest.raises(UserError, match="rejected the record"):
        push(made, target)
    git(tmp_path, "init", "-q", "--bare", str(upstream))
    push(made, target)
    assert git(upstream, "rev-parse", BRANCH) == commit
    push(made, FlowsEnvironment())  # none by default


def test_the_ledger_goes_where_the_registry_is_pushed(source: Path, state: Path, tmp_path: Path) -> None:
    made = open_workspace(state, "nightly", str(source), "HEAD", {})
    commit_run(made, "one", INPUTS)
    upstream = tmp_path / "upstream.git"
    git(tmp_path, "init", "-q", "--bare", str(upstream))
    target = FlowsEnvironment(flows=FlowsConfig(push_git=str(upstream)))
    ledger = Ledger(state)
    for number in range(2):
        ledger.append(decided(str(number), "naïve: 50 %"))
        push(made, target)
        assert git(upstream, "show", f"{LEDGER_BRANCH}:ledger.jsonl") + "\n" == ledger.path.read_text()
    push(made, target)  # nothing new is no further commit
    assert git(upstream, "rev-list", "--count", LEDGER_BRANCH) == "2"
    ledger.path.write_text(ledger.path.read_text().replace("decision", "promote", 1))
    with pytest.raises(UserError, match="does not match"):
        push(made, target)


LOCKS = (
    "HEAD.lock",
    "packed-refs.lock",
    "config.lock",
    "refs/heads/nightly.lock",
    "refs/record/nightly.lock",
    "refs/a/b.lock",
)


def test_locks_of_a_killed_git_are_cleared(source: Path, state: Path) -> None:
    made = open_workspace(state, "nightly", str(source), "HEAD", {})
    first = commit_run(made, "one", INPUTS)
    for name in LOCKS:
        for repository in (made.registry, made.folder / ".git"):
            (repository / name).parent.mkdir(parents=True, exist_ok=True)
            (repository / name).touch()
    made = open_workspace(state, "nightly", str(source), "HEAD", {})
    second = commit_run(made, "two", INPUTS.model_copy(update={"manifest": "1"}))
    assert git(made.registry, "rev-parse", f"{second}^1") == first
    (made.registry / "refs/tags/ral@v0.1.0.lock").touch()
    Registry(state)
    assert not list(made.registry.rglob("*.lock"))


def test_a_lock_that_is_in_use_is_waited_for(state: Path, wait_until) -> None:
    lock = Registry(state).repository / "refs/heads/nightly.lock"
    code = "import sys; from pathlib import Path; from ral.release.registry import Registry; print('go', flush=True); "
    code += "Registry(Path(sys.argv[1]))"
    with locked(state / LOCK):
        lock.touch()
        other = subprocess.Popen([sys.executable, "-c", code, str(state)], stdout=subprocess.PIPE)
        assert other.stdout is not None
        assert other.stdout.readline() == b"go\n"
        time.sleep(0.5)
        assert lock.exists()
        assert other.poll() is None
    assert other.wait() == 0
    assert not lock.exists()


def test_a_killed_init_is_done_again(source: Path, state: Path) -> None:
    for folder in (state / "registry.git", state / "workspaces/nightly/.git"):
        (folder / "refs").mkdir(parents=True)
    made = open_workspace(state, "nightly", str(source), "HEAD", {})
    assert commit_run(made, "one", INPUTS) == git(made.registry, "rev-parse", BRANCH)


@pytest.mark.parametrize("harm", ["objects", "reference"])
def test_a_record_that_cannot_be_read_stops_the_night(source: Path, state: Path, harm: str) -> None:
    made = open_workspace(state, "nightly", str(source), "HEAD", {})
    commit_run(made, "one", INPUTS)
    shutil.rmtree(made.folder)
    if harm == "objects":
        shutil.rmtree(made.registry / "objects")
        (made.registry / "objects").mkdir()
    else:
        (made.registry / "refs/heads" / BRANCH).write_bytes(b"")
    with pytest.raises(UserError, match=r"the record of the nightly runs cannot be read.*fsck.*backup"):
        open_workspace(state, "nightly", str(source), "HEAD", {})


@pytest.mark.parametrize("name", ["split.parquet", "profile.json"])
def test_a_damaged_bundle_is_no_baseline(tmp_path: Path, name: str) -> None:
    """Tonight is held to nothing that is not what was registered."""
    bundle, folder = tmp_path / "v0.1.0", tmp_path / "workspace"
    (folder / "baseline").mkdir(parents=True)
    bundle.mkdir()
    for each in ("split.parquet", "profile.json"):
        (bundle / each).write_text("registered")
    write_bundle(bundle, ["split.parquet", "profile.json"])
    release = Release("v0.1.0", "0" * 40, "champion", bundle)
    registry = SimpleNamespace(releases=lambda: [release], champion=lambda: release)
    install_baseline(folder, registry)
    assert (folder / "baseline" / name).read_text() == "registered"
    (bundle / name).write_text("changed")
    with pytest.raises(UserError, match=rf"{name} has changed since it was registered"):
        install_baseline(folder, registry)
    assert (folder / "baseline" / name).read_text() == "registered"


def test_the_machine_is_no_part_of_the_record(
    source: Path, state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ral.toml").write_text('data_root = "/data"\n')
    made = open_workspace(state, "nightly", str(source), "HEAD", {})
    assert (made.folder / "ral.toml").read_text() == 'data_root = "/data"\n'
    commit = commit_run(made, "one", INPUTS)
    assert "ral.toml" not in git(made.registry, "ls-tree", "--name-only", commit).splitlines()
    (tmp_path / "ral.toml").unlink()
    assert not (open_workspace(state, "nightly", str(source), "HEAD", {}).folder / "ral.toml").exists()


def test_one_run_holds_a_workspace(state: Path) -> None:
    with lock_workspace(state, "nightly", "first", "0") as crashed_run_id:
        assert crashed_run_id is None
        with (
            pytest.raises(WorkspaceLockedError, match="first"),
            lock_workspace(state, "nightly", "second", "1"),
        ):
            pass
        with lock_workspace(state, "other", "third", "2"):
            pass
    with lock_workspace(state, "nightly", "second", "1") as crashed_run_id:
        assert crashed_run_id is None


HOLDER = """
import subprocess, sys, time
from pathlib import Path
from flows.workspace import lock_workspace
with lock_workspace(Path(sys.argv[1]), "nightly", "killed", "flow-run-of-killed"):
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
        with lock_workspace(state, "nightly", "next", "1") as crashed_run_id:
            assert crashed_run_id == "flow-run-of-killed"
            wait_until(lambda: has_ended(child))
            assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()
        holder.stdout.close()
