"""Runs a flow from the command line, without a Prefect server of its own that would outlive it."""

import contextlib
import functools
import os
import signal
import sys
import threading
from collections.abc import Iterator

from prefect.exceptions import CancelledRun

from flows.stage_runner import StageError, terminate_timeout
from flows.workspace import WorkspaceLockedError
from ral.errors import UserError
from ral.processes import start_guard


@contextlib.contextmanager
def run_from_cli() -> Iterator[None]:
    """Run a flow in this process: Ctrl-C ends it, an error is one message with exit code 1, no server is left running.

    A nightly run that finds its workspace locked ends as Cancelled, which Prefect raises here as `CancelledRun`.
    """
    try:
        timeout = terminate_timeout()
        start_guard(timeout)  # the server that Prefect starts for a run without one would outlive a `kill -9`
        signal.signal(signal.SIGINT, functools.partial(_interrupted, timeout))
        yield
    except (WorkspaceLockedError, CancelledRun, StageError, UserError) as error:
        sys.exit(f"error: {error}")


def _interrupted(timeout: float, *_: object) -> None:
    """Ctrl-C: end the stage, then this process, although Prefect waits for a server that Ctrl-C ended as well."""
    timer = threading.Timer(timeout + 6, os._exit, [130])
    timer.daemon = True
    timer.start()
    raise KeyboardInterrupt
