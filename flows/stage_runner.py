"""Runs a command in a workspace, usually a DVC stage, as the body of a Prefect task: log lines, progress,
timeout, termination.

python -m dvc repro --single-item train      # what is run for the stage train, in the workspace
"""

import logging
import os
import select
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any
from uuid import UUID

from prefect import get_run_logger
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.logging.handlers import APILogHandler

from flows.artifacts import run_key
from flows.settings import address, load_flows_environment
from flows.workspace import python_env
from ral import runs
from ral.config.environment import TrainingTarget
from ral.errors import plain
from ral.launch.base import grace_seconds
from ral.log import LOG_FORMAT, Line, parse
from ral.processes import die_with_parent, terminate_group
from ral.records import StepFailure

# Lines of a failed command repeated in the error, so that the run's page says what went wrong.
LAST_LINES = 20

# What DVC says when somebody else runs a stage on the same files; its --wait-for-lock does not wait for that.
BUSY = "is busy, it is being blocked by"

# What DVC advises a person to type after `dvc repro`; the configuration of a workspace does it already.
ADVICE = (
    "To track the changes with git, run:", "To enable auto staging, run:", "git add ", "dvc config core.autostage",
    "Use `dvc push` to send your updates",
)  # fmt: skip


class StageError(Exception):
    """A stage ended with an error; the text holds its last lines.

    Args:
        text: for people.
        retry: whether trying again can help (a crashed_run_id node, a full queue; never bad data); None if
            that is not known.
    """

    def __init__(self, text: str, retry: bool | None = None) -> None:
        super().__init__(text)
        self.retry = retry


def run_stage(name: str, folder: Path = Path(), hours: float | None = None) -> None:
    """Run `dvc repro --single-item NAME` in a workspace.

    An unchanged stage costs DVC a second and runs nothing. Whatever ends this function (a cancelled run, a
    time-out) ends every process of the stage.

    Args:
        name: of the stage.
        folder: the workspace.
        hours: after which the stage is ended.

    Raises:
        StageError: the stage failed, or took too long.
    """
    failure = folder / "runs" / os.environ[runs.RUN_ID] / runs.FAILURE_FILE
    failure.unlink(missing_ok=True)
    try:
        run_command(
            ["-m", "dvc", "--wait-for-lock", "repro", "--single-item", address(name)], folder, name, hours
        )
    except StageError as error:
        if error.retry is None:
            busy = BUSY in str(error)
            error.retry = busy or (failure.is_file() and StepFailure.read(failure).retry)
        raise


def run_command(arguments: Sequence[str], folder: Path, name: str, hours: float | None = None) -> None:
    """Run `python ARGUMENTS` in a workspace, streaming its lines to the Prefect log and its progress to the run's page.

    Args:
        arguments: of Python; no shell reads them.
        folder: the workspace.
        name: of what is run, for messages.
        hours: after which it is ended.

    Raises:
        StageError: it failed, or took too long.
    """
    logger = get_run_logger()
    timeout = terminate_timeout()
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        env=python_env() | {LOG_FORMAT: "json"},
        start_new_session=True,
        preexec_fn=die_with_parent,
    )
    assert process.stdout is not None
    timed_out = threading.Event()
    clock = threading.Timer((hours or 0) * 3600, _end_timed_out, [process, timeout, timed_out])
    clock.daemon = True
    if hours is not None:
        clock.start()
    progress = _Progress(name)
    last: list[str] = []
    try:
        for line in process.stdout:
            if (text := _log_line(logger, progress, line)) is not None:
                last = [*last, text][-LAST_LINES:]
        code = process.wait()
    finally:
        clock.cancel()
        terminate_group(process, timeout)
        if _all_written(process.stdout):  # what it said when it was asked to end: that a checkpoint was saved
            rest = process.stdout.read().splitlines()
            for line in rest:
                _log_line(logger, progress, line)
            if rest:
                APILogHandler().flush()  # the SIGTERM that ends a run does not wait for lines under way to the server
    if timed_out.is_set():
        raise StageError(
            f"Stage {name} timed out after {hours:g} h (flows.timeout_hours). Training resumes from its checkpoint "
            "when it is run again.",
            retry=False,
        )
    if code:
        raise StageError("\n".join([f"Stage {name} failed:", *last]))


def terminate_timeout(training: TrainingTarget | None = None) -> float:
    """Seconds between asking a command to end and killing it: training saves a checkpoint in `training.grace` of them,
    and its launcher waits for schedulers.

    Args:
        training: where training runs; None: what ral.toml says.
    """
    return grace_seconds(training or load_flows_environment().training) + 7


def _log_line(logger: Any, progress: "_Progress", line: str) -> str | None:
    """Log a line of the command at its level; its text, or None for an empty line and DVC's advice."""
    if not line.strip() or line.strip().startswith(ADVICE):
        return None
    parsed = parse(line.strip()) or Line(logging.INFO, line.rstrip(), None)
    message = plain(parsed.message)  # DVC and git name addresses of remotes
    logger.log(parsed.level, "%s", message)
    if parsed.progress is not None:
        progress.show(parsed.progress, message)
    return message


def _all_written(pipe: IO[str]) -> bool:
    """Whether nobody writes to a pipe any more, so that reading it comes to an end."""
    poll = select.poll()
    poll.register(pipe, 0)  # a hang-up is told without being asked for
    return any(event & select.POLLHUP for _, event in poll.poll(0))


def _end_timed_out(process: subprocess.Popen[str], timeout: float, timed_out: threading.Event) -> None:
    timed_out.set()
    terminate_group(process, timeout)


class _Progress:
    """A progress artifact, made when the first share is known."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._artifact: UUID | None = None

    def show(self, percent: float, description: str) -> None:
        if self._artifact is None:
            made = create_progress_artifact(
                progress=percent, key=run_key(f"progress-{self._name}"), description=self._name
            )
            assert isinstance(made, UUID)
            self._artifact = made
        else:
            update_progress_artifact(self._artifact, progress=percent, description=description)
