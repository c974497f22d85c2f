"""The audit section of the report: flagged gaps first, then the groups of every attribute."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ral.evaluation.specs import GROUP_METRICS, LABELS
from ral.evaluation.table_rows import AuditRow
from ral.reporting.tables import Cell, Table
from ral.wording import difference, known, number, p_value, pluralize, with_interval

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
    """Means over the findings, one table per attribute."""
    pairs: list[Table]
    """The same, one table per pair of attributes."""
    findings: list[Table]
    """Every finding, one table per attribute."""


def audit(rows: Sequence[AuditRow]) -> Audit:
    """Convert the rows of audit.csv to tables."""
    flagged = [row for row in rows if row.flagged == "yes"]
    parts = _split([row for row in rows if row.group], "attribute")
    single = [part for part in parts if len(part[0].attributes) == 1]
    return Audit(
        tested=sum(known(row.p) for row in rows),
        flagged=_flagged(flagged) if flagged else None,
        missing=tuple(row.attribute for row in rows if not row.group),
        groups=[_groups(part) for part in single],
        pairs=[_groups(part) for part in parts if len(part[0].attributes) > 1],
        findings=[_findings(part) for part in single],
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


def _flagged(rows: Sequence[AuditRow]) -> Table:
    return Table(
        "Flagged gaps",
        (
            "Group", "Attribute", "Finding", "Metric", "Group's value", "All other images", "Difference",
            "Corrected p", "Patients", "Positive images",
        ),
        "llllrrrrrr",
        [
            [
                Cell(row.group, "failed error"),
                row.attribute,
                row.finding,
                LABELS[row.metric],
                _value(row),
                number(row.others),
                difference(row.difference, row.difference_low, row.difference_high),
                p_value(row.p_holm),
                _count(row.patients),
                _count(row.positives),
            ]
            for row in sorted(rows, key=lambda row: (row.p_holm, row.p))
        ],
    )  # fmt: skip


def _groups(rows: Sequence[AuditRow]) -> Table:
    """Means over the findings of each group of an attribute."""
    content = []
    for part in _split(rows, "group"):
        by_metric = {row.metric: row for row in part if row.finding == MACRO}
        compared = {
            row.finding
            for row in part
            if row.metric == "auroc" and row.finding != MACRO and known(row.others)
        }
        content.append(
            [
                part[0].group,
                _count(part[0].images),
                _count(part[0].patients),
                f"{len(compared)}",
                *(_metric(by_metric.get(metric)) for metric in GROUP_METRICS),
            ]
        )
    return Table(
        f"Groups by {rows[0].attribute}: means over the comparable findings",
        ("Group", "Images", "Patients", "Findings compared", *(LABELS[metric] for metric in GROUP_METRICS)),
        "l" + "r" * (3 + len(GROUP_METRICS)),
        content,
    )


def _findings(rows: Sequence[AuditRow]) -> Table:
    """Every finding in each group of an attribute."""
    content = []
    for group in _split(rows, "group"):
        for part in _split(group, "finding"):
            if part[0].finding == MACRO:
                continue
            by_metric = {row.metric: row for row in part}
            note = by_metric[""].note if "" in by_metric else ""
            content.append(
                [
                    part[0].group,
                    part[0].finding,
                    _count(part[0].positives),
                    *(
                        Cell(TOO_FEW, "missing", note) if note else _metric(by_metric.get(metric))
                        for metric in GROUP_METRICS
                    ),
                ]
            )
    return Table(
        f"Every finding by {rows[0].attribute}",
        ("Group", "Finding", "Positive images", *(LABELS[metric] for metric in GROUP_METRICS)),
        "llr" + "r" * len(GROUP_METRICS),
        content,
    )


def _split(
    rows: Sequence[AuditRow], column: Literal["attribute", "group", "finding"]
) -> list[list[AuditRow]]:
    """The rows by the values of a column, in the order of their first rows."""
    parts: dict[str, list[AuditRow]] = {}
    for row in rows:
        parts.setdefault(getattr(row, column), []).append(row)
    return list(parts.values())


def _metric(row: AuditRow | None) -> str | Cell:
    if row is None:
        return Cell(TOO_FEW, "missing")
    if row.flagged == "yes":
        return Cell(f"{_value(row)} flagged", "failed error")
    return _value(row)


def _value(row: AuditRow) -> str:
    # Signed: a positive calibration gap means that the scores are too high.
    shown = difference if row.metric == "calibration" else with_interval
    return shown(row.value, row.low, row.high)


def _count(value: int | None) -> str:
    return "" if value is None else f"{value:,}"
