"""Prefect artifacts on the page of a run: validation, metrics, the gate's decision, the headline with the report.

Their keys end with the run's id: Prefect's page opens an artifact by its key, as the latest one of that key.
"""

import csv
import os
import platform
import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from prefect import runtime
from prefect.artifacts import create_markdown_artifact, create_table_artifact

from ral import artifacts
from ral.data.validation.result import ValidationResult
from ral.evaluation.results import Metrics
from ral.evaluation.specs import LABELS, MEANS, RANKED_BY
from ral.release.decision import GateDecision
from ral.runs import RUN_ID
from ral.wording import difference, escape, known, notice_sentence, number, sealed, with_interval

# A cell of a table.
Cell: TypeAlias = str | int | float | bool | None

# What would be HTML, a link, a picture or a format; names such as Pleural_Thickening stay as they are.
_MARKDOWN = re.compile(r"[\\`*\[\]|~!#<>&]|://|www\.", re.IGNORECASE)


def run_key(name: str) -> str:
    """Key of an artifact of this flow run."""
    run = runtime.flow_run.id
    return f"{name}-{run[:8]}" if run else name


def shown(table: Sequence[Mapping[str, Cell]]) -> list[dict[str, Cell]]:
    """A table whose text stays text: Prefect's page reads every cell as Markdown, which may load pictures."""

    def cell(value: Cell) -> Cell:
        return escape(value) if isinstance(value, str) and _MARKDOWN.search(value) else value

    return [{name: cell(value) for name, value in row.items()} for row in table]


def publish_validation(path: Path) -> None:
    """Show the validation's checks as a table."""
    validation = ValidationResult.read(path)
    table = [
        check.model_dump(include={"check", "column", "severity", "passed", "unexpected"})
        for check in validation.checks
    ]
    counts = f"{validation.rows:,} rows, {validation.images:,} images, "
    counts += f"{validation.rows_without_image:,} rows without image"
    create_table_artifact(
        key=run_key("validation"),
        table=shown(table),
        description=f"{notice_sentence(validation.phantom)} {counts}",
    )


def publish_metrics(folder: Path) -> None:
    """Show the metrics, macro and per tier and finding, as tables."""
    metrics = Metrics.read(folder / artifacts.METRICS.name)
    groups = {"macro": metrics.macro, **metrics.tiers}
    table: list[dict[str, Cell]] = [
        {
            "group": name,
            "findings": group.findings,
            **{metric: group[metric].text() for metric in MEANS},
        }
        for name, group in groups.items()
    ]
    kind = notice_sentence(metrics.phantom)
    create_table_artifact(
        key=run_key("metrics"),
        table=shown(table),
        description=f"{kind} Test images, {metrics.confidence:.0%} intervals",
    )
    with (folder / artifacts.FINDINGS.name).open(encoding="utf-8", newline="") as stream:
        findings = [_finding(row) for row in csv.DictReader(stream)]
    create_table_artifact(key=run_key("findings"), table=shown(findings), description=kind)


def publish_report(folder: Path) -> None:
    """Show the headline and the command that opens the report.

    Args:
        folder: the workspace. The report is copied into the run's folder, because the next run replaces the original.
    """
    reports, copy = folder / artifacts.REPORTS, report_copy(folder)
    copy.parent.mkdir(parents=True, exist_ok=True)
    for name in (artifacts.REPORT.name, artifacts.RUN_INFO.name):
        if (reports / name).is_file():
            shutil.copyfile(reports / name, copy.with_name(name))
    metrics = Metrics.read(folder / artifacts.METRICS)
    text = headline(metrics, _previous(folder / artifacts.COMPARISON), copy)
    create_markdown_artifact(key=run_key("report"), markdown=text, description=_short(metrics))


def publish_bundle(bundle: Path) -> None:
    """Show the headline of a registered model and the command that opens the report in its bundle."""
    metrics = Metrics.read(bundle / artifacts.METRICS.name)
    text = headline(metrics, "", bundle / artifacts.REPORT.name)
    create_markdown_artifact(key=run_key("release"), markdown=text, description=_short(metrics))


def report_copy(folder: Path) -> Path:
    """Where the report of the current run stays when the next run replaces reports/report.html."""
    return folder / "runs" / os.environ[RUN_ID] / artifacts.REPORT.name


def headline(metrics: Metrics, previous: str, report: Path) -> str:
    """The means over the findings and the command that opens the report, as Markdown.

    Args:
        metrics: content of metrics.json.
        previous: sentence about the previous model; may be empty.
        report: path of the report.
    """
    means = {"all findings (macro)": metrics.macro, **metrics.tiers}
    test = metrics.test
    images = f"{test.rows:,} test images of {test.patients:,} patients; {metrics.confidence:.0%} intervals."
    return "\n".join(
        [
            f"**{notice_sentence(metrics.phantom)}**",
            "",
            f"| findings | number | {' | '.join(LABELS[metric] for metric in MEANS)} |",
            "| --- | ---: | --- | --- | --- |",
            *(
                f"| {name} | {mean.findings} | {' | '.join(mean[metric].text() for metric in MEANS)} |"
                for name, mean in means.items()
            ),
            "",
            f"{images} {sealed(test.sealed_patients)}".rstrip(),
            *(["", previous] if previous else []),
            "",
            open_command(report),
        ]
    )


def open_command(report: Path) -> str:
    """The command that opens a report, as Markdown: browsers follow no link from a server's page to a file."""
    path = shlex.quote(str(report.resolve()))
    return (
        f"Open the report on `{platform.node()}`:\n\n````\nxdg-open {path}\n````\n\n"
        f"or copy it from there first:\n\n````\nscp {platform.node()}:{path} .\n````"
    )


def _short(metrics: Metrics) -> str:
    """The headline in a line, for the card of the artifact."""
    means = ", ".join(f"{LABELS[metric]} {number(metrics.macro[metric].value)}" for metric in RANKED_BY)
    return f"{means} (macro). {notice_sentence(metrics.phantom)}"


def _finding(row: dict[str, str]) -> dict[str, Cell]:
    """A row of findings.csv, narrow enough for the page to show it whole."""

    def metric(name: str) -> str:
        value, low, high = (float(row[f"{name}{end}"] or "nan") for end in ("", "_low", "_high"))
        return with_interval(value, low, high)

    return {
        "finding": row["finding"],
        "tier": row["tier"],
        "positive": int(row["test_positives"]),
        "AP": metric("ap"),
        "AUROC": metric("auroc"),
    }


def _previous(comparison: Path) -> str:
    """A sentence about the macro AP of the previous model; empty if there is none."""
    with comparison.open(encoding="utf-8", newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if (row["metric"], row["level"]) == ("ap", "macro")]
    if not rows:
        return ""
    before, gap, low, high = (
        float(rows[0][name] or "nan") for name in ("baseline_value", "difference", "low", "high")
    )
    if not known(gap):
        return f"Previous model: not comparable. {escape(rows[0]['note'])}".rstrip()
    return (
        f"Previous model on the same images: macro AP {number(before)}; difference "
        f"{difference(gap, low, high)}."
    )


def decision_text(decision: GateDecision) -> str:
    """The gate's decision and its reasons as Markdown."""
    lines = [f"**{escape(decision.sentence)}**", ""]
    for rule in decision.rules:
        lines.append(f"- {escape(rule.rule)} {rule.result}: {escape(rule.sentence)}")
    return "\n".join([*lines, "", escape(decision.notice)])


def publish_decision(decision: GateDecision) -> None:
    """Show the gate's decision."""
    create_markdown_artifact(key=run_key("decision"), markdown=decision_text(decision))
