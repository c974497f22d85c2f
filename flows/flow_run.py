"""What every flow does first: environment, run id, lock on its workspace, and the end of a run that crashed
before it.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from prefect import runtime

from flows.notifications import exit_when_worker_dies, mark_crashed
from flows.overrides import Changes
from flows.settings import FlowsEnvironment, load_flows_environment
from flows.workspace import Workspace, WorkspaceName, lock_workspace, open_workspace
from ral.runs import RUN_ID, new_id


@dataclass(frozen=True)
class FlowRun:
    """A run of a flow on this machine."""

    id: str
    """Its id; runs/<id> in the workspace is its folder."""
    environment: FlowsEnvironment
    """What ral.toml says."""
    workspace: WorkspaceName | None
    """The workspace that it holds; None if it works in the folder that it was started in."""

    @property
    def state_dir(self) -> Path:
        """The private folder of workspaces, registry and checkpoints."""
        return self.environment.state_dir.absolute()

    def checkout(self, revision: str, changes: Changes | None) -> Workspace:
        """Check the project out into the workspace that this run holds.

        Args:
            revision: branch, tag or commit of the project; HEAD is its default branch.
            changes: parameters by dotted name with their values, checked as params.yaml is.

        Raises:
            UserError: see `open_workspace`.
        """
        assert self.workspace is not None
        source = self.environment.flows.repository or str(Path.cwd())
        return open_workspace(self.state_dir, self.workspace, source, revision, changes or {})


@contextlib.contextmanager
def flow_run(workspace: WorkspaceName | None, run_id: str | None = None) -> Iterator[FlowRun]:
    """Set up a run of a flow: its id in the environment of its stages, the lock on its workspace, the watch
    on its worker.

    A run that was killed while it held the workspace is marked as Crashed, and what it left running is ended.

    Args:
        workspace: name of the workspace to lock; None to work in the current folder.
        run_id: of the run; a new one if None.

    Raises:
        UserError: ral.toml or a RAL_… variable is wrong.
        WorkspaceLockedError: another run holds the workspace.
    """
    environment = load_flows_environment()
    run = FlowRun(run_id or new_id(), environment, workspace)
    os.environ[RUN_ID] = run.id
    with contextlib.ExitStack() as stack:
        stack.enter_context(exit_when_worker_dies())
        if workspace is not None:
            lock = lock_workspace(run.state_dir, workspace, run.id, str(runtime.flow_run.id))
            crashed_run_id = stack.enter_context(lock)
            if crashed_run_id:
                mark_crashed(crashed_run_id)
        yield run
