"""Flow train-ral: every stage of dvc.yaml in its order, from raw images to the report.

    python -m flows.train_ral                                       # here and now, without a server
    prefect deployment run train-ral/train-ral                      # by a worker, after `prefect deploy -n train-ral`
    prefect deployment run train-ral/train-ral --param 'changes={"train.epochs": 5}'

As it stands it works in the folder it is started in, as `dvc repro` does. With changed parameters or a revision it works in
a workspace of its own (state_dir/workspaces/train-ral), so that nobody's params.yaml is touched.
"""

import argparse
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prefect import flow, runtime
from prefect.exceptions import CancelledRun

from flows.notifications import exit_when_worker_dies, mark_crashed, notify_on_failure
from flows.stage_runner import StageError
from flows.stage_tasks import stages
from flows.workspace import WorkspaceLockedError, lock_workspace, open_workspace
from ral import runs
from ral.config.environment import Environment, load_environment
from ral.errors import UserError
from ral.processes import start_guard


@flow(
    name="train-ral",
    on_failure=[notify_on_failure],
    on_crashed=[notify_on_failure],
    on_cancellation=[notify_on_failure],
)
def train_ral(revision: str | None = None, changes: dict[str, Any] | None = None) -> None:
    """Images in, report out: each task runs its DVC stage, and an unchanged stage costs nothing.

    Args:
        revision: branch, tag or commit to run; the files of this folder as they are if neither it nor `changes` is given.
        changes: parameters by dotted name with their values, checked as params.yaml is.
    """
    os.environ[runs.RUN_ID] = runs.new_id()
    environment = load_environment()
    with exit_when_worker_dies():
        if revision is None and not changes:
            run_all(Path(), environment)
            return
        state = environment.state_dir.absolute()
        with lock_workspace(
            state, "train-ral", os.environ[runs.RUN_ID], str(runtime.flow_run.id)
        ) as crashed_run_id:
            if crashed_run_id:
                mark_crashed(crashed_run_id)
            source = environment.flows.repository or str(Path.cwd())
            workspace = open_workspace(state, "train-ral", source, revision or "HEAD", changes or {})
            run_all(workspace.folder, environment)


def run_all(folder: Path, environment: Environment) -> None:
    """Run every stage in the workspace `folder`."""
    run = stages(folder, environment)
    run("locate")
    run("phantom")
    run("manifest")
    run("validate")
    run("preprocess")
    run("train")
    run("explain")
    run("evaluate")
    run("report")


@contextlib.contextmanager
def run_from_cli() -> Iterator[None]:
    """A flow that is run from the command line: Ctrl-C ends it, errors are one message, no server of its own is left.

    (A night that finds its workspace in use ends as cancelled, which Prefect raises here as an exception of its own.)
    """
    start_guard()  # the server that Prefect starts for a run without one would outlive a `kill -9`
    signal.signal(signal.SIGINT, _interrupted)
    try:
        yield
    except (WorkspaceLockedError, CancelledRun, StageError, UserError) as error:
        sys.exit(f"error: {error}")


def _interrupted(*_: object) -> None:
    """Ctrl-C: end the stage; then this process, although Prefect waits for a server that Ctrl-C has ended as well."""
    timer = threading.Timer(15, os._exit, [130])
    timer.daemon = True
    timer.start()
    raise KeyboardInterrupt


if __name__ == "__main__":
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    with run_from_cli():
        train_ral()
