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
from ral.files import read_json, write_json

# Set by whoever runs several steps as one run (make, the Prefect flow), so that they share a folder.
RUN_ID = "RAL_RUN_ID"


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


@contextmanager
def track_step(step: str) -> Iterator[None]:
    """Note in runs/<id>/run.json when a step began and ended, and how; the first step adds commit and machine."""
    path = folder() / "run.json"
    record = read_json(path) if path.exists() else _new_record()
    entry = {"started": _now(), "status": "running"}
    record["steps"][step] = entry
    write_json(path, record)
    try:
        yield
        entry["status"] = "done"
    except BaseException as error:
        entry["status"] = plain(f"failed: {str(error) or type(error).__name__}")
        raise
    finally:
        entry["finished"] = _now()
        write_json(path, record)


def _new_record() -> dict:
    return {
        "id": os.environ[RUN_ID],
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "machine": {
            "host": platform.node(),
            "system": platform.platform(),
            "python": sys.version.split()[0],
            "cores": os.cpu_count(),
        },
        "steps": {},
    }


def _git(*arguments: str) -> str | None:
    """What git answers, or None outside a repository or without git: a run needs neither."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
