"""Notifications of how a run ended: the log, a notification block, and Prefect's state of runs that were killed."""

import contextlib
import inspect
import logging
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any
from uuid import UUID

from prefect.blocks.abstract import NotificationBlock
from prefect.blocks.core import Block
from prefect.client.orchestration import get_client
from prefect.logging.loggers import flow_run_logger
from prefect.states import Crashed
from prefect.utilities.asyncutils import run_coro_as_sync
from rich.console import Console

from flows.settings import load_flows_environment
from ral.errors import plain

logger = logging.getLogger(__name__)

# What is sent to `flows.notify`: event -> text, for docs/runbook.md.
EVENTS = {
    "a run of one of the three flows ended as `Failed`, `Crashed` or `Cancelled`; not a killed run that the next one "
    "marked `Crashed`": "FLOW RUN: STATE. MESSAGE",
    "a nightly run has decided": "Nightly run ID: DECISION: VERSION; champion VERSION",
}


def notify_on_failure(flow: Any, flow_run: Any, state: Any) -> None:
    """Hook of a flow that failed, crashed or was cancelled: log it and send a notification."""
    text = plain(f"{flow.name} {flow_run.name}: {state.name}. {state.message or ''}")
    flow_run_logger(flow_run).error(text)
    send_notification(load_flows_environment().flows.notify, text)


def send_notification(block: str | None, text: str) -> None:
    """Send a text through a Prefect notification block (Slack, e-mail, …). A failing block does not fail the run.

    Args:
        block: TYPE/NAME of the block; None sends nothing.
        text: for people.
    """
    if block is None:
        return
    try:
        loaded = Block.load(block)
        assert isinstance(loaded, NotificationBlock), f"{block} is no notification block"
        sending = loaded.notify(text, subject="ral")
        if inspect.iscoroutine(sending):  # some blocks are only asynchronous
            run_coro_as_sync(sending)
    except Exception as error:  # noqa: BLE001  whatever the service or the block raises
        # Not its text: that may hold the block's address, which is a secret of its own.
        logger.error(
            "Notification via %s failed: %s. Check the block on Prefect's page.", block, type(error).__name__
        )


@contextlib.contextmanager
def exit_when_worker_dies(every: float = 1.0) -> Iterator[None]:
    """Crash the run in this block when the worker that started it dies: nothing else could cancel it.

    The kernel's parent-death signal does not help here: it fires when a thread of the worker ends, not only the worker.

    Args:
        every: seconds between two looks.
    """
    if "PREFECT__FLOW_RUN_ID" not in os.environ:  # started by hand
        yield
        return
    worker, over, asked = os.getppid(), threading.Event(), threading.Event()

    def end(*_: object) -> None:
        # Once: a second SIGTERM would cut short the end of the stage, in which training saves.
        if not asked.is_set():
            asked.set()
            os.kill(os.getpid(), signal.SIGTERM)

    if (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
    ):
        # Prefect hears SIGTERM alone; the terminal of a worker hangs up on the runs as well.
        signal.signal(signal.SIGHUP, end)

    def watch() -> None:
        while not over.wait(every):
            if os.getppid() != worker:
                end()
                return

    # Prefect's console would exit at once when its line cannot reach the worker, before the line reaches the server.
    Console.on_broken_pipe = _be_quiet  # type: ignore[method-assign]
    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _be_quiet(self: Console) -> None:
    self.quiet = True


def mark_crashed(flow_run: str) -> None:
    """Mark a killed run as Crashed in Prefect, which would show it as Running forever."""
    with get_client(sync_client=True) as client:
        try:
            found = client.read_flow_run(UUID(flow_run))
        except Exception as error:  # noqa: BLE001  another server, or a run that was deleted
            logger.warning(
                "The previous run %s was killed; Prefect has no record of it (%s).", flow_run, error
            )
            return
        if found.state is not None and not found.state.is_final():
            text = "It was killed while running; the next run stopped its remaining processes."
            client.set_flow_run_state(found.id, Crashed(message=text), force=True)
