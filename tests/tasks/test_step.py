"""The edge of a step: exit codes, failure.json, the record, and what DVC's end does to training."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import processes_in

ROOT = Path(__file__).parent.parent.parent
HEAD = "import errno, os, sys, time\nfrom ral.errors import UserError\nfrom tasks import step\n"


def start(
    folder: Path, environment: dict[str, str], body: str, name: str = "train", **env: str
) -> subprocess.Popen:
    script = f"{HEAD}def run():\n    {body}\nstep.main({name!r}, run)\n"
    return subprocess.Popen(
        [sys.executable, "-c", script], cwd=folder, text=True, stderr=subprocess.PIPE,
        env=environment | {"PYTHONPATH": str(ROOT), "RAL_RUN_ID": "one"} | env,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("body", "code", "kind", "retry", "words"),
    [
        ("raise UserError('row 3 is odd')", 1, "input", False, "row 3 is odd"),
        ("raise UserError('host gone', 'lost_process', True)", 1, "lost_process", True, "host gone"),
        ("raise OSError(errno.ENOSPC, '', 'models')", 1, "disk", False, "models: No space left"),
        (
            "raise FileNotFoundError(errno.ENOENT, '', 'validation.json')",
            1,
            "input",
            False,
            "validation.json: No such",
        ),
        ("raise KeyboardInterrupt", 130, "interrupted", True, "asked to end"),
        ("os.kill(os.getpid(), 15); time.sleep(60)", 143, "interrupted", True, "asked to end"),
        (
            "os.kill(os.getpid(), 1); time.sleep(60)",
            129,
            "interrupted",
            True,
            "Rerun the same command to resume",
        ),
        ("raise ZeroDivisionError('one')", 1, "bug", False, "ZeroDivisionError: one"),
        ("raise OSError(errno.EPROTO, 'unheard of')", 1, "bug", False, "unheard of"),
        ("raise OSError(errno.EIO, 'x', 'a.tar')", 1, "disk", False, "a.tar: Input/output error. The disk"),
        ("raise OSError(errno.ENAMETOOLONG, 'x', 'a.png')", 1, "input", False, "Give it a shorter name"),
    ],
)
def test_a_failure_is_told_to_programs(
    tmp_path: Path, environment: dict[str, str], body: str, code: int, kind: str, retry: bool, words: str
) -> None:
    step = start(tmp_path, environment, body)
    _, printed = step.communicate()
    assert step.returncode == code
    assert ("Traceback" in printed) == (kind == "bug")
    failure = json.loads((tmp_path / "runs/one/failure.json").read_text())
    assert words in failure.pop("message")
    assert failure == {"step": "train", "kind": kind, "retry": retry}


def test_success_leaves_no_failure(tmp_path: Path, environment: dict[str, str]) -> None:
    assert start(tmp_path, environment, "raise UserError('once')").wait() == 1
    assert (tmp_path / "runs/one/failure.json").exists()
    assert start(tmp_path, environment, "pass").wait() == 0
    assert not (tmp_path / "runs/one/failure.json").exists()


# What asks a step twice, as a group's end and DVC's end do, must not cut short what it does at its end.
TWICE = """try:
        open('started', 'w').close(); time.sleep(3600)
    finally:
        time.sleep(1); open('saved', 'w').close()"""


def test_asking_twice_does_not_cut_the_end_short(
    tmp_path: Path, environment: dict[str, str], wait_until: Callable
) -> None:
    step = start(tmp_path, environment, TWICE)
    wait_until(lambda: (tmp_path / "started").exists())
    step.terminate()
    time.sleep(0.3)
    step.terminate()
    assert step.wait() == 143
    assert (tmp_path / "saved").exists()


def test_a_hang_up_that_is_ignored_stays_so(tmp_path: Path, environment: dict[str, str]) -> None:
    body = "os.kill(os.getpid(), 1); open('survived', 'w').close()"
    script = f"{HEAD}def run():\n    {body}\nstep.main('train', run)\n"
    command = ["nohup", sys.executable, "-c", script]
    env = environment | {"PYTHONPATH": str(ROOT), "RAL_RUN_ID": "one"}
    assert subprocess.run(command, cwd=tmp_path, env=env, stdout=subprocess.DEVNULL).returncode == 0
    assert (tmp_path / "survived").exists()


@pytest.mark.parametrize(("name", "saved"), [("train", True), ("evaluate", False)])
def test_training_may_save_when_dvc_is_killed(
    tmp_path: Path, environment: dict[str, str], wait_until: Callable, name: str, saved: bool
) -> None:
    inner = f"{HEAD}def run():\n    {TWICE}\nstep.main({name!r}, run)\n"
    dvc = subprocess.Popen(
        [sys.executable, "-c", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"],
        cwd=tmp_path, env=environment | {"PYTHONPATH": str(ROOT), "RAL_RUN_ID": "one", "DVC_STAGE": name},
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    wait_until(lambda: (tmp_path / "started").exists())
    os.kill(dvc.pid, signal.SIGKILL)
    dvc.wait()
    wait_until(lambda: not processes_in(tmp_path))
    assert (tmp_path / "saved").exists() == saved


def test_a_dry_run_leaves_nothing(tmp_path: Path, environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "tasks.train", "--dry-run", "--params", ROOT / "params.yaml"],
        cwd=tmp_path, env=environment | {"PYTHONPATH": str(ROOT), "RAL_TRAINING_PROCESSES": "2"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("-m ral.training") == 2
    assert not any(f" {name}\n" in done.stderr for name in ("torch", "deepspeed", "pandas"))
    assert not list(tmp_path.iterdir())
