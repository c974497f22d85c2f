"""The stages of the DVC pipeline as Prefect tasks, with retries and with artifacts on the page of the run."""

import os
from pathlib import Path
from typing import Any, Protocol

from prefect import task

from flows.artifacts import publish_metrics, publish_report, publish_validation
from flows.settings import STAGES, FlowsEnvironment, stage_range
from flows.stage_runner import StageError, run_command, run_stage
from ral import artifacts
from ral.artifacts import Stage
from ral.runs import RUN_ID


class StageRunner(Protocol):
    """Runs stages in a workspace, each as a task with the stage's name."""

    def __call__(self, first: Stage, last: Stage | None = None) -> None:
        """Run the stages from `first` to `last` in the order of the graph; only `first` if `last` is None.

        Raises:
            StageError: a stage failed, or took too long.
        """


def stages(folder: Path, environment: FlowsEnvironment) -> StageRunner:
    """Return a function that runs stages in the workspace `folder`."""
    target = environment.flows
    tasks = {
        name: task(
            name=name,
            retries=target.retries,
            retry_delay_seconds=[target.retry_seconds * 2**n for n in range(target.retries)],
            retry_condition_fn=is_retryable,
        )(run_stage)
        for name in STAGES
    }

    def run(first: Stage, last: Stage | None = None) -> None:
        for name in stage_range(first, last or first):
            run_one(name)

    def run_one(name: Stage) -> None:
        try:
            tasks[name](name, folder, target.timeout_hours.get(name))
        except StageError:
            validation_file = folder / "runs" / os.environ[RUN_ID] / artifacts.VALIDATION.name
            if name == "validate" and validation_file.exists():
                publish_validation(validation_file)
            raise
        _publish(name, folder)

    return run


def run_module_task(name: str, folder: Path, *arguments: str) -> None:
    """Run `python ARGUMENTS` in the workspace as the task `name`."""
    task(name=name)(run_command)(arguments, folder, name)


def is_retryable(task: Any, task_run: Any, state: Any) -> bool:
    """Whether Prefect retries a failed task: only if the failure says that a retry can help."""
    try:
        state.result()
    except StageError as error:
        return bool(error.retry)
    except Exception:  # noqa: BLE001  the task's own error, whatever it is: it stays the task's end
        return False
    return False


def _publish(name: Stage, folder: Path) -> None:
    if name == "validate":
        publish_validation(folder / artifacts.VALIDATION)
    elif name == "evaluate":
        publish_metrics(folder / artifacts.REPORTS)
    elif name == "report":
        publish_report(folder)
