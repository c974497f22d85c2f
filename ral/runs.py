"""The folder of a run, runs/<id>/: what happened, when, on which machine; kept out of DVC's outputs."""

import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import psutil

from ral.errors import plain
from ral.records import Record

# Set by whoever runs several steps as one run (make, the Prefect flow), so that they share a folder.
RUN_ID = "RAL_RUN_ID"

# The record of a run, in its folder.
RUN_FILE = "run.json"

# Why its last step failed, for programs; absent if it did not.
FAILURE_FILE = "failure.json"


def new_id() -> str:
    """An id for a run that starts now: sortable by time, readable, distinct between processes."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{os.getpid()}"


def share_with_siblings() -> None:
    """Take the run id that all children of the parent process take, unless the environment names one."""
    if RUN_ID not in os.environ:
        parent = psutil.Process(os.getppid())
        os.environ[RUN_ID] = f"{datetime.fromtimestamp(parent.create_time(), UTC):%Y%m%dT%H%M%S}-{parent.pid}"


def folder() -> Path:
    """Folder of the current run, created if needed; without a run id in the environment, of a new run."""
    path = Path("runs") / os.environ.setdefault(RUN_ID, new_id())
    path.mkdir(parents=True, exist_ok=True)
    return path


class StepRecord(Record):
    """When a step ran and how it ended."""

    started: str
    """ISO 8601, UTC."""
    status: str
    """running, done, or `failed: ` and the message."""
    finished: str | None = None
    """Not there while it runs."""


class Machine(Record):
    """Where a run ran."""

    host: str
    system: str
    python: str
    cores: int | None


class RunRecord(Record):
    """Content of run.json."""

    id: str
    commit: str | None
    """None outside a git repository."""
    uncommitted_changes: bool
    machine: Machine
    steps: dict[str, StepRecord]
    """By name, in the order in which they began."""


@contextmanager
def track_step(step: str) -> Iterator[None]:
    """Note in runs/<id>/run.json when a step began and ended, and how; the first step adds commit and machine."""
    path = folder() / RUN_FILE
    record = RunRecord.read(path) if path.exists() else _new_record()
    entry = StepRecord(started=_now(), status="running")
    _with_step(record, step, entry).write(path)
    status = "done"
    try:
        yield
    except BaseException as error:
        status = plain(f"failed: {str(error) or type(error).__name__}")
        raise
    finally:
        entry = entry.model_copy(update={"status": status, "finished": _now()})
        _with_step(record, step, entry).write(path)


def _with_step(record: RunRecord, name: str, step: StepRecord) -> RunRecord:
    return record.model_copy(update={"steps": record.steps | {name: step}})


def _new_record() -> RunRecord:
    return RunRecord(
        id=os.environ[RUN_ID],
        commit=_git("rev-parse", "HEAD"),
        uncommitted_changes=bool(_git("status", "--porcelain", "--untracked-files=no")),
        machine=Machine(
            host=platform.node(),
            system=platform.platform(),
            python=sys.version.split()[0],
            cores=os.cpu_count(),
        ),
        steps={},
    )


def _git(*arguments: str) -> str | None:
    """What git answers, or None outside a repository or without git: a run needs neither."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
