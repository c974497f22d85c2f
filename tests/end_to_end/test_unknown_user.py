"""A user that the system does not know, as with `docker run --user 12345`: no entry in /etc/passwd, no home,
no name.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

UID = 12345
# The Python that runs the tests may lie where only root looks; nothing else of root's is lent.
AS_USER = [
    "setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups",
    "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search",
]  # fmt: skip
NAMES = ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME", "RAL_STATE_DIR")

RunAs = Callable[..., str]

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0 or shutil.which("setpriv") is None,
    reason="only root can become another user, with setpriv of Linux",
)


@pytest.fixture(scope="module")
def folder(chain_done: Path) -> Iterator[Path]:
    """A copy of a project that has run; it belongs to the user, who can reach it."""
    with tempfile.TemporaryDirectory() as made:
        project = Path(shutil.copytree(chain_done, Path(made) / "project", symlinks=True))
        scripts = project / ".venv/bin"
        scripts.mkdir(parents=True)
        for name in ("python", "dvc"):
            (scripts / name).write_text(f'#!/bin/sh\nexec "{Path(sys.executable).parent / name}" "$@"\n')
            (scripts / name).chmod(0o755)
        (project / ".venv/installed").touch()
        for path in [Path(made), *Path(made).rglob("*")]:
            os.chown(path, UID, UID)
        yield project


@pytest.fixture(scope="module")
def run_as(folder: Path, environment: dict[str, str]) -> RunAs:
    """Run a command as the user and return what it printed; it must exit with `code`."""

    def run(*command: str, code: int = 0, **variables: str) -> str:
        plain = {name: value for name, value in environment.items() if name not in NAMES}
        done = subprocess.run(
            [*AS_USER, *command], cwd=folder, env=plain | variables, text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert done.returncode == code, f"{command} exited with {done.returncode}:\n{done.stdout}"
        return done.stdout

    return run


@pytest.mark.parametrize("home", [{}, {"HOME": "/"}], ids=["absent", "root"])
@pytest.mark.parametrize("module", ["tasks.manifest", "flows.train_ral"])
def test_without_a_place_for_state_one_message_says_what_to_set(
    run_as: RunAs, module: str, home: dict[str, str]
) -> None:
    (line,) = run_as("python", "-m", module, code=1, **home).splitlines()
    assert line.startswith(f"error: User id {UID} has no home folder")
    assert "RAL_STATE_DIR" in line


def test_a_place_that_cannot_be_written_is_named(run_as: RunAs) -> None:
    (line,) = run_as("python", "-m", "tasks.manifest", code=1, RAL_STATE_DIR="/proc/state").splitlines()
    assert line.startswith("error: /proc/state: ")
    assert "RAL_STATE_DIR" in line


def test_tilde_is_no_place(run_as: RunAs) -> None:
    printed = run_as("python", "-m", "tasks.manifest", code=1, RAL_STATE_DIR="~/state")
    assert "RAL_STATE_DIR: state_dir: " in printed
    assert "use an absolute path" in printed


@pytest.mark.parametrize(
    "home", [pytest.param({}, id="absent"), pytest.param({"HOME": "/"}, id="root", marks=pytest.mark.long)]
)
@pytest.mark.parametrize("from_nothing", [False, pytest.param(True, marks=pytest.mark.long)])
def test_make_run_works(run_as: RunAs, folder: Path, home: dict[str, str], from_nothing: bool) -> None:
    if from_nothing:
        for name in ("data", "models", "reports", ".dvc/cache"):
            shutil.rmtree(folder / name)
        (folder / "dvc.lock").unlink()
    printed = run_as("make", "run", **home)
    skipped = printed.count("didn't change, skipping")
    assert (skipped == 0) if from_nothing else (skipped > 0)
    assert printed.splitlines()[-1] == "report: reports/report.html"
    assert not (folder / "~").exists()


def test_steps_work_with_a_place_for_state(run_as: RunAs, folder: Path) -> None:
    state = folder.parent / "state"
    for step in ("manifest", "phantom", "validate"):
        run_as("python", "-m", f"tasks.{step}", RAL_STATE_DIR=str(state))
    assert {"home", "raw"} <= {path.name for path in state.iterdir()}
    assert state.stat().st_mode & 0o777 == 0o700
    assert not (folder / "~").exists()


def test_who_decides_is_a_number(run_as: RunAs, folder: Path) -> None:
    script = "from ral.release.__main__ import person; print(person())"
    assert run_as("python", "-c", script, PYTHONPATH=str(folder)) == f"user {UID}\n"
