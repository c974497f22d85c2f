"""Runs one DVC stage as the body of a Prefect task, and publishes what it made."""

import csv
import os
import subprocess
import sys
from pathlib import Path

from prefect import get_run_logger
from prefect.artifacts import create_link_artifact, create_table_artifact

from ral.files import read_json
from ral.processes import die_with_parent, end_group
from ral.reporting.wording import estimate

# Lines of a failed stage repeated in the error, so that the run's page says what went wrong.
LAST_LINES = 20

# Seconds between asking a stage to end and killing it: training saves a checkpoint in `training.grace` of them.
PATIENCE = 9.0


class StageError(Exception):
    """A DVC stage ended with an error; the text holds its last lines."""


def run_stage(name: str) -> None:
    """Run `dvc repro --single-item NAME` here, streaming its lines to the Prefect log.

    An unchanged stage costs DVC a second and runs nothing. Whatever ends this function (a cancelled run, a
    time-out) ends every process of the stage.

    Raises:
        StageError: the stage failed.
    """
    logger = get_run_logger()
    bin_folder = Path(sys.executable).parent
    process = subprocess.Popen(
        [sys.executable, "-m", "dvc", "repro", "--single-item", name],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        # dvc.yaml says `python`; it must be the one that runs this flow.
        env=os.environ | {"PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}", "PYTHONUNBUFFERED": "1"},
        start_new_session=True,
        preexec_fn=die_with_parent,
    )
    assert process.stdout is not None
    last: list[str] = []
    try:
        for line in process.stdout:
            logger.info(line.rstrip())
            last = [*last, line.rstrip()][-LAST_LINES:]
        code = process.wait()
    finally:
        end_group(process, PATIENCE)
    if code:
        raise StageError("\n".join([f"Stage {name} failed:", *last]))


def publish_verdict(path: Path) -> None:
    """Show the validation's checks as a table on the run's page."""
    verdict = read_json(path)
    table = [
        {key: check[key] for key in ("check", "column", "severity", "passed", "unexpected")}
        for check in verdict["checks"]
    ]
    facts = f"{verdict['rows']:,} rows, {verdict['films']:,} films, {verdict['rows_without_film']:,} rows without film"
    create_table_artifact(key="verdict", table=table, description=f"{_kind(verdict['phantom'])} {facts}")


def publish_metrics(folder: Path) -> None:
    """Show the metrics, macro and per tier and finding, as tables on the run's page."""
    metrics = read_json(folder / "metrics.json")
    groups = {"macro": metrics["macro"], **metrics["tiers"]}
    table = [
        {
            "group": name,
            "findings": group["findings"],
            **{metric: estimate(group[metric]) for metric in ("ap", "auroc", "f1")},
        }
        for name, group in groups.items()
    ]
    kind = _kind(metrics["data"] == "phantom")
    create_table_artifact(
        key="metrics", table=table, description=f"{kind} Test films, {metrics['confidence']:.0%} intervals"
    )
    with (folder / "findings.csv").open(encoding="utf-8", newline="") as stream:
        create_table_artifact(key="findings", table=list(csv.DictReader(stream)), description=kind)


def publish_report(path: Path, metrics: Path) -> None:
    """Link the report on the run's page."""
    kind = _kind(read_json(metrics)["data"] == "phantom")
    create_link_artifact(
        key="report", link=path.resolve().as_uri(), link_text=f"Report: {path}", description=kind
    )


def _kind(phantom: bool) -> str:
    return "PHANTOM films, no clinical result." if phantom else "Research software, not a medical device."
