"""The audit section of the report: flagged gaps first, then the groups of every attribute."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ral.reporting.tables import Cell, Table, records, text
from ral.wording import (
    NOT_ESTIMABLE,
    known,
    number,
    p_value,
    pluralize,
    signed,
    signed_interval,
    with_interval,
)

# Metric in audit.csv -> name in the report.
METRICS = {
    "auroc": "AUROC",
    "ap": "AP",
    "sensitivity": "Sensitivity",
    "false_negative_rate": "False negative rate",
    "calibration": "Calibration gap",
}
TOO_FEW = "too few"
MACRO = "macro"


@dataclass(frozen=True)
class Audit:
    """The content of audit.csv that the report shows."""

    tested: int
    """Number of tested gaps, which are corrected jointly."""
    flagged: Table | None
    """None if no gap is flagged."""
    missing: tuple[str, ...]
    """Attributes that the data does not have."""
    groups: list[Table]
    """Means over the findings, one table per attribute and pair of attributes."""
    findings: list[Table]
    """Every finding, one table per single attribute."""


def audit(table: pd.DataFrame) -> Audit:
    """Convert audit.csv to tables."""
    rows = records(table)
    flagged = [row for row in rows if text(row["flagged"]) == "yes"]
    present = [row for row in rows if text(row["group"])]
    attributes = list(dict.fromkeys(text(row["attribute"]) for row in present))
    parts = {name: [row for row in present if text(row["attribute"]) == name] for name in attributes}
    return Audit(
        tested=sum(known(row["p"]) for row in rows),
        flagged=_flagged(flagged) if flagged else None,
        missing=tuple(text(row["attribute"]) for row in rows if not text(row["group"])),
        groups=[_groups(name, part) for name, part in parts.items()],
        findings=[_findings(name, part) for name, part in parts.items() if " × " not in name],
    )


def summary_sentence(content: Audit, confidence: float) -> str:
    """The number of tested and flagged gaps, as a sentence."""
    if not content.tested:
        return (
            "No gap could be tested: in no group do both the group and all other images have enough patients with a "
            "finding."
        )
    gaps = f"{pluralize(content.tested, 'gap', 'gaps')} between a group and all other images"
    flags = len(content.flagged.rows) if content.flagged else 0
    result = f"{pluralize(flags, 'is', 'are')} flagged" if flags else "none is flagged"
    return (
        f"{gaps} {'was' if content.tested == 1 else 'were'} tested, with Holm's correction for multiple "
        f"testing; {result} "
        f"(corrected p of at most {1 - confidence:.3g}). No flag does not mean no gap: small groups have "
        "wide intervals."
    )


def _flagged(rows: list[dict[str, Any]]) -> Table:
    return Table(
        "Flagged gaps",
        (
            "Group", "Attribute", "Finding", "Metric", "Group's value", "All other images", "Difference",
            "Corrected p", "Patients", "Positive images",
        ),
        "llllrrrrrr",
        [
            [
                Cell(text(row["group"]), "failed error"),
                text(row["attribute"]),
                text(row["finding"]),
                METRICS[row["metric"]],
                _value(row),
                number(row["others"]),
                f"{signed(row['difference'])} ({signed_interval(row['difference_low'], row['difference_high'])})",
                p_value(row["p_holm"]),
                _count(row["patients"]),
                _count(row["positives"]),
            ]
            for row in sorted(rows, key=lambda row: (row["p_holm"], row["p"]))
        ],
    )  # fmt: skip


def _groups(attribute: str, rows: list[dict[str, Any]]) -> Table:
    """Means over the findings of each group of an attribute."""
    content = []
    for group, part in _split(rows, "group"):
        by_metric = {row["metric"]: row for row in part if text(row["finding"]) == MACRO}
        compared = {
            text(row["finding"])
            for row in part
            if text(row["metric"]) == "auroc" and text(row["finding"]) != MACRO and known(row["others"])
        }
        content.append(
            [
                group,
                _count(part[0]["images"]),
                _count(part[0]["patients"]),
                f"{len(compared)}",
                *(_metric(by_metric.get(metric)) for metric in METRICS),
            ]
        )
    return Table(
        f"Groups by {attribute}: means over the comparable findings",
        ("Group", "Images", "Patients", "Findings compared", *METRICS.values()),
        "l" + "r" * (3 + len(METRICS)),
        content,
    )


def _findings(attribute: str, rows: list[dict[str, Any]]) -> Table:
    """Every finding in each group of an attribute."""
    content = []
    for group, part in _split(rows, "group"):
        for finding, metric_rows in _split(part, "finding"):
            if finding == MACRO:
                continue
            by_metric = {text(row["metric"]): row for row in metric_rows}
            note = text(by_metric[""]["note"]) if "" in by_metric else ""
            content.append(
                [
                    group,
                    finding,
                    _count(metric_rows[0]["positives"]),
                    *(
                        Cell(TOO_FEW, "missing", note) if note else _metric(by_metric.get(metric))
                        for metric in METRICS
                    ),
                ]
            )
    return Table(
        f"Every finding by {attribute}",
        ("Group", "Finding", "Positive images", *METRICS.values()),
        "llr" + "r" * len(METRICS),
        content,
    )


def _split(rows: list[dict[str, Any]], column: str) -> Iterable[tuple[str, list[dict[str, Any]]]]:
    names = list(dict.fromkeys(text(row[column]) for row in rows))
    return [(name, [row for row in rows if text(row[column]) == name]) for name in names]


def _metric(row: dict[str, Any] | None) -> str | Cell:
    if row is None:
        return Cell(TOO_FEW, "missing")
    if text(row["flagged"]) == "yes":
        return Cell(f"{_value(row)} flagged", "failed error")
    return _value(row)


def _value(row: dict[str, Any]) -> str:
    if row["metric"] != "calibration":
        return with_interval(row["value"], row["low"], row["high"])
    # Signed: a positive gap means that the scores are too high.
    return (
        f"{signed(row['value'])} ({signed_interval(row['low'], row['high'])})"
        if known(row["value"])
        else NOT_ESTIMABLE
    )


def _count(value: float | None) -> str:
    return f"{int(value):,}" if known(value) else ""
