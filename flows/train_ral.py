"""Flow train-ral: every stage of the DVC pipeline in its order, from raw images to the report.

    python -m flows.train_ral                                       # here and now, without a server
    prefect deployment run train-ral/train-ral                      # by a worker, after `prefect deploy -n train-ral`
    prefect deployment run train-ral/train-ral --param 'changes={"train.epochs": 5}'

As it stands it works in the folder it is started in, as `dvc repro` does. With changed parameters or a
revision it works in a workspace of its own (state_dir/workspaces/train-ral), so that nobody's params.yaml is
touched.
"""

import argparse

if __name__ == "__main__":  # before the imports that take seconds: --help needs none of them
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()

from pathlib import Path

from prefect import flow

from flows.cli import run_from_cli
from flows.flow_run import flow_run
from flows.notifications import notify_on_failure
from flows.overrides import Changes
from flows.stage_tasks import stages
from ral import artifacts
from ral.evaluation.results import Metrics
from ral.reporting.summary import summary


@flow(
    name="train-ral",
    on_failure=[notify_on_failure],
    on_crashed=[notify_on_failure],
    on_cancellation=[notify_on_failure],
)
def train_ral(revision: str | None = None, changes: Changes | None = None) -> None:
    """Images in, report out: each task runs its DVC stage, and an unchanged stage costs nothing.

    Args:
        revision: branch, tag or commit to run; the files of this folder as they are if neither it nor
        `changes` is given.
        changes: parameters by dotted name with their values, checked as params.yaml is.
    """
    in_place = revision is None and not changes
    with flow_run(None if in_place else "train-ral") as run:
        folder = Path() if in_place else run.checkout(revision or "HEAD", changes).folder
        stages(folder, run.environment)("manifest", "report")


if __name__ == "__main__":
    with run_from_cli():
        train_ral()
    print(summary(Metrics.read(Path(artifacts.METRICS)), Path(artifacts.REPORT)))
