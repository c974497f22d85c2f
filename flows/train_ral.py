"""Flow train-ral: every stage of dvc.yaml in its order, from raw films to the report.

python -m flows.train_ral                          # here and now, without a server
prefect deployment run train-ral/train-ral         # by a worker, after `prefect deploy -n train-ral`
"""

import argparse
import os
import signal
import threading
from pathlib import Path

from prefect import flow, task

from flows.stage import StageError, publish_metrics, publish_report, publish_verdict, run_stage
from ral import runs
from ral.config.base import load
from ral.config.environment import load_environment
from ral.config.params import Params
from ral.processes import start_guard

PHANTOM = Path("data/phantom")


@task
def phantom() -> None:
    """Draw the embedded data set."""
    run_stage("phantom")


@task
def manifest() -> None:
    """Name the raw data by content."""
    run_stage("manifest")


@task
def validate() -> None:
    """Check the label table and find the films; a refused table is shown all the same."""
    try:
        run_stage("validate")
    except StageError:
        refused = runs.folder() / "verdict.json"
        if refused.exists():
            publish_verdict(refused)
        raise
    publish_verdict(Path("data/validated/verdict.json"))


@task
def preprocess() -> None:
    """Split the patients, pack labels and pixels."""
    run_stage("preprocess")


@task
def train() -> None:
    """Train the network, score validation and test."""
    run_stage("train")


@task
def explain() -> None:
    """Heat maps of hits and errors, confused findings."""
    run_stage("explain")


@task
def evaluate() -> None:
    """Metrics with intervals."""
    run_stage("evaluate")
    publish_metrics(Path("reports"))


@task
def report() -> None:
    """One HTML file."""
    run_stage("report")
    publish_report(Path("reports/report.html"), Path("reports/metrics.json"))


@flow(name="train-ral")
def train_ral() -> None:
    """Films in, report out: each task runs its DVC stage, and an unchanged stage costs nothing."""
    os.environ[runs.RUN_ID] = runs.new_id()
    params = load(Path("params.yaml"), Params)
    if Path(load_environment().located(params.data).root) == PHANTOM:
        phantom()
    manifest()
    validate()
    preprocess()
    train()
    explain()
    evaluate()
    report()


def interrupted(*_: object) -> None:
    """Ctrl-C: end the stage; then this process, although Prefect waits for a server that Ctrl-C has ended as well."""
    timer = threading.Timer(15, os._exit, [130])
    timer.daemon = True
    timer.start()
    raise KeyboardInterrupt


if __name__ == "__main__":
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    start_guard()  # the server that Prefect starts for a run without one would outlive a `kill -9`
    signal.signal(signal.SIGINT, interrupted)
    train_ral()
