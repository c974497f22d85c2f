"""Tidying removes what nothing needs, and nothing else: nights, releases, unfinished trainings, other
workspaces' outputs.
"""

import fcntl
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT

from flows.tidy import Rules, tidy, wanted
from flows.workspace import BRANCH, WORKSPACES, WorkspaceLockedError, git
from ral.errors import UserError

RULES = Rules(nightly_runs=2, days=30, runs=2)

STAGE = "stages:\n  make:\n    cmd: cp params.yaml out.txt\n    deps: [params.yaml]\n    outs: [out.txt]\n"


def shared(folder: Path, cache: Path) -> None:
    """A git repository with a DVC stage, whose cache is the shared one."""
    folder.mkdir(parents=True)
    git(folder, "init", "--quiet", "--initial-branch", "main")
    git(folder, "config", "user.name", "t")
    git(folder, "config", "user.email", "t@example.org")
    (folder / ".dvc").mkdir()
    (folder / ".dvc/config").write_text("[core]\n    analytics = false\n    check_update = false\n")
    (folder / ".dvc/.gitignore").write_text("/config.local\n/tmp\n/cache\n")
    (folder / ".dvc/config.local").write_text(
        f"[cache]\n    dir = {cache}\n    type = reflink,hardlink,symlink,copy\n"
    )
    (folder / ".gitignore").write_text("/out.txt\n")
    (folder / "dvc.yaml").write_text(STAGE)


def dvc(folder: Path, *arguments: str) -> None:
    subprocess.run(
        [sys.executable, "-m", "dvc", *arguments], cwd=folder, check=True, capture_output=True,
        env=os.environ | {"DVC_NO_ANALYTICS": "1"},
    )  # fmt: skip


def night(folder: Path, text: str, commit: bool = True) -> str:
    (folder / "params.yaml").write_text(f"text: {text}\n")
    dvc(folder, "repro")
    if not commit:
        return ""
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "-m", text)
    return git(folder, "rev-parse", "HEAD")


def contents(state: Path) -> set[str]:
    """What the cache holds of the nights' outputs."""
    texts = [path.read_text() for path in (state / "dvc/files/md5").rglob("*") if path.is_file()]
    return {text.removeprefix("text: ").strip() for text in texts if text.startswith("text: ")}


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state_dir after five nights, a one-off run, an experiment, and a release with a bundle."""
    state = tmp_path_factory.mktemp("nights")
    nightly = state / "workspaces/nightly"
    shared(nightly, state / "dvc")
    commits = [night(nightly, f"night-{number}") for number in range(5)]
    git(state, "init", "--quiet", "--bare", str(state / "registry.git"))
    git(nightly, "push", "--quiet", str(state / "registry.git"), f"HEAD:refs/heads/{BRANCH}")
    git(nightly, "checkout", "--quiet", "--detach")
    for number in (0, 1):  # night 1 was released, too, but its bundle was pruned
        git(state / "registry.git", "tag", f"ral@v0.{number + 1}.0", commits[number])
    bundle = state / "releases/v0.1.0"
    bundle.mkdir(parents=True)
    (bundle / "bundle.json").write_text(json.dumps({"commit": commits[0]}))
    night(nightly, "unfinished", commit=False)
    shared(state / "workspaces/train-ral", state / "dvc")
    night(state / "workspaces/train-ral", "one-off", commit=False)
    compare = state / "workspaces/compare"
    shared(compare, state / "dvc")
    night(compare, "grid")
    dvc(compare, "exp", "run", "--temp", "--name", "first", "-S", "text=experiment")
    for name in WORKSPACES:
        (state / f"workspaces/{name}.run").touch()
    return state


def test_the_cache_keeps_what_nights_releases_and_other_workspaces_need(nights: Path) -> None:
    everything = {*(f"night-{number}" for number in range(5)), "unfinished", "one-off", "grid", "experiment"}
    assert contents(nights) == everything
    lines = tidy(nights, RULES, dry=True)
    assert any("dvc  (" in line for line in lines), lines
    assert not any("Removed" in line for line in lines)
    assert contents(nights) == everything
    lines = tidy(nights, RULES, dry=False)
    assert contents(nights) == everything - {"night-1", "night-2"}, lines
    assert tidy(nights, RULES, dry=False) == []
    assert not (nights / "tidy").exists()
    assert (nights / "workspaces/nightly/out.txt").read_text() == "text: unfinished\n"
    # The first night can still be brought back, with its release.
    clone = nights / "clone"
    git(nights, "clone", "--quiet", str(nights / "registry.git"), str(clone))
    git(clone, "checkout", "--quiet", "ral@v0.1.0")
    (clone / ".dvc/config.local").write_text(f"[cache]\n    dir = {nights / 'dvc'}\n")
    dvc(clone, "checkout")
    assert (clone / "out.txt").read_text() == "text: night-0\n"


def test_what_is_wanted_is_said_by_the_record_and_the_bundles(nights: Path, tmp_path: Path) -> None:
    newest = git(nights / "registry.git", "rev-parse", BRANCH, f"{BRANCH}~1").split()
    released = git(nights / "registry.git", "rev-parse", "ral@v0.1.0^{commit}")
    assert wanted(nights, 2) == [*newest, released]
    assert wanted(tmp_path, 2) == []
    (tmp_path / "releases/v0.1.0").mkdir(parents=True)
    (tmp_path / "releases/v0.1.0/bundle.json").write_text("{torn")
    with pytest.raises(UserError, match=r"DVC's cache stays as it is"):
        wanted(tmp_path, 2)


def old(folder: Path, days: float) -> Path:
    """A folder with a file that was last touched so many days ago."""
    folder.mkdir(parents=True)
    (folder / "lock").touch()
    for path in (folder / "lock", folder):
        os.utime(path, (time.time() - days * 86400,) * 2)
    return folder


def test_unfinished_trainings_stay_until_they_are_abandoned(tmp_path: Path) -> None:
    gone, recent, runs = (
        old(tmp_path / "training" / name, days) for name, days in (("a", 31), ("b", 29), ("c", 31))
    )
    with (runs / "lock").open() as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        said = tidy(tmp_path, RULES, dry=True)
        assert ["training/a" in line for line in said] == [True]
        assert gone.exists()
        assert tidy(tmp_path, RULES, dry=False) == said
    assert (gone.exists(), recent.exists(), runs.exists()) == (False, True, True)


def test_workspaces_of_the_flows_stay_and_their_old_runs_go(tmp_path: Path) -> None:
    for name in (*WORKSPACES, "renamed"):
        old(tmp_path / "workspaces" / name, 400)
    old(tmp_path / "workspaces/new", 1)
    for name in WORKSPACES:
        for number in range(4):
            (tmp_path / f"workspaces/{name}/runs/{number}").mkdir(parents=True)
    (tmp_path / "workspaces/compare/.dvc/tmp/exps/x").mkdir(parents=True)
    tidy(tmp_path, RULES, dry=False)
    assert {path.name for path in (tmp_path / "workspaces").iterdir() if path.is_dir()} == {
        *WORKSPACES,
        "new",
    }
    for name in WORKSPACES:
        assert sorted(path.name for path in (tmp_path / f"workspaces/{name}/runs").iterdir()) == ["2", "3"]
    assert not (tmp_path / "workspaces/compare/.dvc/tmp/exps").exists()


def test_bundles_registry_ledger_and_images_are_left_alone(tmp_path: Path) -> None:
    for name in ("releases/v0.1.0", "raw", "images/64-stretch-0"):
        old(tmp_path / name, 400)
    (tmp_path / "releases/v0.1.0/bundle.json").write_text('{"commit": "0"}')
    (tmp_path / "ledger.jsonl").write_text("{}\n")
    before = sorted(tmp_path.rglob("*"))
    assert tidy(tmp_path, RULES, dry=False) == []
    assert sorted(tmp_path.rglob("*")) == before


def test_nothing_is_removed_beside_a_run(tmp_path: Path) -> None:
    gone = old(tmp_path / "training/a", 31)
    (tmp_path / "workspaces").mkdir()
    held = tmp_path / "workspaces/nightly.run"
    with held.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        with pytest.raises(WorkspaceLockedError, match="nightly is in use"):
            tidy(tmp_path, RULES, dry=False)
    held.write_text("killed\nits-flow-run\n")
    with pytest.raises(WorkspaceLockedError, match="killed was killed in the workspace nightly"):
        tidy(tmp_path, RULES, dry=False)
    assert held.read_text() == "killed\nits-flow-run\n"  # the next night must find it
    assert gone.exists()


def test_the_command_line_says_what_would_go(tmp_path: Path, run) -> None:
    old(tmp_path / "training/a", 31)
    command = [sys.executable, "-m", "flows.tidy", "--dry-run"]
    done = run(*command, cwd=ROOT, RAL_STATE_DIR=str(tmp_path))
    assert " ".join(done.stdout.split()) == "would remove 0 B training/a (training not touched for 31 days)"
    assert (tmp_path / "training/a").exists()
    assert "Nothing to remove." in run(*command, "--days", "60", cwd=ROOT, RAL_STATE_DIR=str(tmp_path)).stdout
    done = run(*command[:-1], cwd=ROOT, RAL_STATE_DIR=str(tmp_path))
    assert done.stdout.startswith("removed ")
    assert not (tmp_path / "training/a").exists()
    assert "at least 1" in run(*command, "--keep", "0", cwd=ROOT, code=2).stdout
