"""The first screen of the report: what was trained on what, the headline metrics, the changed parameters."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ral.config.data import UNTRACKED
from ral.config.keys import differences
from ral.config.params import ReportParams
from ral.data.dataset_info import DatasetInfo
from ral.evaluation.results import Metrics
from ral.evaluation.specs import LABELS, MEANS
from ral.evaluation.table_rows import ComparisonRow, FindingRow
from ral.reporting.comparison import macro_row
from ral.reporting.tables import Cell, Table
from ral.wording import interval, known, number, pluralize

if TYPE_CHECKING:
    from ral.models.info import ModelInfo


@dataclass(frozen=True)
class Headline:
    """A mean over all findings."""

    name: str
    value: str
    interval: str
    findings: str
    """Number of findings that the mean is over."""
    note: str
    difference: str
    """Difference to the previous model with its interval; empty if the two cannot be compared."""
    previous: str
    """What it is the difference to; empty if the two were not compared in this metric."""


def facts(source: str, phantom: bool, dataset: DatasetInfo, model: "ModelInfo") -> dict[str, str]:
    """Source, images, patients, network and loss, by name.

    Args:
        source: the parameter data.source.
        phantom: whether phantom images were used.
        dataset: content of dataset.json.
        model: content of model.json.
    """
    network = model.model
    head = "" if network.head == "linear" else f", head {network.head}"
    weights = "pretrained" if model.pretrained_sha256 else "from random weights"
    return {
        "Source": f"phantom images in the layout of {source}" if phantom else source,
        "Images": f"{dataset.images:,}",
        "Patients": f"{dataset.patients:,}",
        "Network": f"{network.backbone}{head}, {model.size} × {model.size} pixels, {weights}",
        "Loss": str(model.loss),
    }


def headline(
    metrics: Metrics, rows: Sequence[FindingRow], comparison: Sequence[ComparisonRow]
) -> list[Headline]:
    """The means over all findings, each with its chance level and the difference to the previous model.

    Args:
        metrics: content of metrics.json.
        rows: of findings.csv.
        comparison: rows of comparison.csv; none without a previous model.
    """
    chance_levels = [row.test_prevalence for row in rows if known(row.value("ap"))]
    notes = {
        "ap": f"chance level {sum(chance_levels) / len(chance_levels):.3f}" if chance_levels else "",
        "auroc": "chance level 0.500",
        "f1": "thresholds chosen on validation",
    }
    return [
        Headline(
            name=f"Macro {LABELS[metric]}",
            value=number(metrics.macro[metric].value),
            interval=interval(metrics.macro[metric].low, metrics.macro[metric].high),
            findings=pluralize(sum(known(row.value(metric)) for row in rows), "finding", "findings"),
            note=notes[metric],
            difference=difference,
            previous=previous,
        )
        for metric in MEANS
        for difference, previous in [_previous(macro_row(comparison, metric), metrics.test.rows)]
    ]


def changed_parameters(params: ReportParams) -> Table:
    """The parameters that differ from their defaults, except paths of data and options of losses that are not used."""
    changed = {
        key: values
        for key, values in differences(params).items()
        if key.removeprefix("data.") not in UNTRACKED
        if not (key.startswith("loss.") and key.count(".") > 1) or key.startswith(f"loss.{params.loss.name}.")
    }
    rows = [[Cell(key, "code"), Cell(old, "code"), Cell(new, "code")] for key, (old, new) in changed.items()]
    return Table(
        "Parameters that differ from the defaults", ("Parameter", "Default", "This run"), "lww", rows
    )


def _previous(row: ComparisonRow | None, images: int) -> tuple[str, str]:
    """The difference to the previous model, and what it is the difference to.

    Args:
        row: of the mean over all findings; None without a comparison in this metric.
        images: number of test images of this model.
    """
    if row is None:
        return "", ""
    if not known(row.difference):
        return "", "previous model: not comparable"
    shared = "" if row.images == images else f" on the {row.images or 0:,} images that both scored"
    return row.difference_text, f"to the previous model: {number(row.baseline_value)}{shared}"
