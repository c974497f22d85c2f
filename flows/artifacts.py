"""Prefect artifacts on the page of a run: validation, metrics, the gate's decision, a link to the report."""

import csv
import re
from pathlib import Path
from typing import Any

from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact

from ral.files import read_json
from ral.wording import escape, estimate

# What would be HTML, a link, a picture or a format; names such as Pleural_Thickening stay as they are.
_MARKDOWN = re.compile(r"[\\`*\[\]|~!#<>&]|://|www\.", re.IGNORECASE)


def shown(table: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A table whose text stays text: Prefect's page reads every cell as Markdown, which may load pictures."""

    def cell(value: Any) -> Any:
        return escape(value) if isinstance(value, str) and _MARKDOWN.search(value) else value

    return [{name: cell(value) for name, value in row.items()} for row in table]


def publish_validation(path: Path) -> None:
    """Show the validation's checks as a table."""
    validation = read_json(path)
    table = [
        {key: check[key] for key in ("check", "column", "severity", "passed", "unexpected")}
        for check in validation["checks"]
    ]
    counts = f"{validation['rows']:,} rows, {validation['images']:,} images, "
    counts += f"{validation['rows_without_image']:,} rows without image"
    create_table_artifact(
        key="validation", table=shown(table), description=f"{_kind(validation['phantom'])} {counts}"
    )


def publish_metrics(folder: Path) -> None:
    """Show the metrics, macro and per tier and finding, as tables."""
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
        key="metrics",
        table=shown(table),
        description=f"{kind} Test images, {metrics['confidence']:.0%} intervals",
    )
    with (folder / "findings.csv").open(encoding="utf-8", newline="") as stream:
        create_table_artifact(key="findings", table=shown(list(csv.DictReader(stream))), description=kind)


def publish_report(path: Path, metrics: Path) -> None:
    """Link the report."""
    kind = _kind(read_json(metrics)["data"] == "phantom")
    create_link_artifact(
        key="report", link=path.resolve().as_uri(), link_text=f"Report: {path.name}", description=kind
    )


def decision_text(decision: dict[str, Any]) -> str:
    """The gate's decision and its reasons as Markdown."""
    lines = [f"**{escape(decision['sentence'])}**", ""]
    for rule in decision["rules"]:
        lines.append(f"- {escape(rule['rule'])} {rule['result']}: {escape(rule['sentence'])}")
    return "\n".join([*lines, "", escape(decision["notice"])])


def publish_decision(decision: dict[str, Any]) -> None:
    """Show the gate's decision."""
    create_markdown_artifact(key="decision", markdown=decision_text(decision))


def _kind(phantom: bool) -> str:
    return "PHANTOM DATA, no clinical meaning." if phantom else "Research software, not a medical device."
