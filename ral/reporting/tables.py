"""The tables of the report, as text that the template escapes."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ral.config.data import UNTRACKED
from ral.evaluation.results import Metrics
from ral.evaluation.specs import AGREEMENT_METRICS, LABELS, MEANS, READ_AGAINST
from ral.evaluation.table_rows import FindingRow, ReadingRow
from ral.reporting.plots import points
from ral.wording import known, number, percent, pluralize

if TYPE_CHECKING:
    from ral.models.info import ModelInfo

# Points of the curves that the table lists.
FALSE_POSITIVE_RATES = (0.05, 0.1, 0.2, 0.5)
RECALLS = (0.25, 0.5, 0.75)
AT_SPECIFICITY = "sensitivity_at_90_specificity"

OVERALL = {"macro": "all findings (macro)", "micro": "all pairs of image and finding (micro)"}
SPLITS = {"train": "training", "val": "validation", "test": "test"}


@dataclass(frozen=True)
class Cell:
    """Text with a style (a class of report.css) or a tooltip."""

    text: str
    style: str = ""
    title: str = ""


@dataclass(frozen=True)
class Table:
    """A table; the first cell of a row is its header."""

    caption: str
    columns: tuple[str, ...]
    align: str
    """A letter per column: l for text, r for numbers, w for text that may wrap."""
    rows: Sequence[Sequence[str | Cell]]
    sortable: bool = False
    """Whether a click on a column header sorts the table."""


def tiers(metrics: Metrics, rows: Sequence[FindingRow]) -> Table:
    """Means over all findings and per tier, and the micro average."""
    means = {"macro": metrics.macro, "micro": metrics.micro, **metrics.tiers}
    content = []
    for name, mean in means.items():
        members = [row for row in rows if name in ("macro", "micro", row.tier)]
        scored = [row for row in members if known(row.value("ap"))]
        # The micro average pools all pairs, so its chance level weights findings by their images.
        chance = (
            sum(row.test_positives for row in scored) / max(sum(row.test_rows for row in scored), 1)
            if name == "micro"
            else sum(row.test_prevalence for row in scored) / max(len(scored), 1)
        )
        title = OVERALL[name] if name in OVERALL else Cell(name, f"tier {name}")
        content.append(
            [
                title,
                f"{mean.findings} of {len(members)}",
                *(mean[metric].text() for metric in MEANS),
                number(chance if scored else None),
                mean[AT_SPECIFICITY].text(),
            ]
        )
    return Table(
        "Means over the findings, with intervals",
        (
            "Findings",
            "Estimable",
            *(LABELS[metric] for metric in MEANS),
            "Chance level of AP",
            LABELS[AT_SPECIFICITY],
        ),
        "lrrrrrr",
        content,
    )


def cxr_lt(metrics: Metrics) -> Table:
    """The metrics of the CXR-LT challenges, under their official names."""
    return Table(
        "Metrics of the CXR-LT challenges",
        ("Metric", "Value", "Mean over"),
        "lrr",
        [
            [name, metric.text(), pluralize(metric.findings, "finding", "findings")]
            for name, metric in metrics.cxr_lt.items()
        ],
    )


def findings(rows: Sequence[FindingRow]) -> Table:
    """The metrics of every finding."""
    return Table(
        "Metrics of every finding on the test images, the most frequent in training first",
        (
            "Finding",
            "Tier",
            "Positive in training",
            "Test positives",
            LABELS["auroc"],
            LABELS["ap"],
            "Chance level of AP",
            LABELS[AT_SPECIFICITY],
            LABELS["f1"],
        ),
        "llrrrrrrr",
        [
            [
                row.finding,
                Cell(row.tier, f"tier {row.tier}"),
                f"{row.train_positives:,} ({percent(row.train_prevalence)})",
                f"{row.test_positives:,}",
                row.metrics["auroc"].text(),
                row.metrics["ap"].text(),
                number(row.test_prevalence),
                row.metrics[AT_SPECIFICITY].text(),
                row.metrics["f1"].text(),
            ]
            for row in rows
        ],
        sortable=True,
    )


def curve_points(curves: pd.DataFrame, rows: Sequence[FindingRow]) -> Table:
    """Some points of each plotted curve; curves.csv has all of them."""
    content = []
    for row in rows:
        roc, pr = points(curves, row.finding, "roc"), points(curves, row.finding, "pr")
        if not len(roc[0]):
            continue
        content.append(
            [row.finding]
            + [f"{np.interp(rate, *roc):.3f}" for rate in FALSE_POSITIVE_RATES]
            + [f"{pr[1][int(np.abs(pr[0] - recall).argmin())]:.3f}" for recall in RECALLS]
        )
    return Table(
        "Points of the curves; curves.csv has all of them",
        (
            "Finding",
            *(f"True positive rate at false positive rate {rate:g}" for rate in FALSE_POSITIVE_RATES),
            *(f"Precision at recall {recall:g}" for recall in RECALLS),
        ),
        "l" + "r" * (len(FALSE_POSITIVE_RATES) + len(RECALLS)),
        content,
    )


def history(epochs: pd.DataFrame, best: int) -> Table:
    """Measurements after every epoch, with the trained weights and with their moving average (EMA)."""
    measured = ("val_macro_ap", "val_macro_auroc", "ema_val_macro_ap", "ema_val_macro_auroc")
    return Table(
        "Epochs",
        (
            "Epoch", "Learning rate", "Training loss", "Skipped steps", "Validation macro AP",
            "Validation macro AUROC", "Macro AP of the EMA weights", "Macro AUROC of the EMA weights",
        ),
        "lrrrrrrr",
        [
            [
                f"{int(row['epoch'])}"
                + " (classifier)" * (row["phase"] == "classifier")
                + " (selected)" * (row["epoch"] == best),
                f"{row['learning_rate']:.3g}",
                number(row["train_loss"], 5),
                f"{int(row['skipped_steps'])}",
                *(number(row[name], 4) for name in measured),
            ]
            for row in epochs.to_dict("records")
        ],
    )  # fmt: skip


def model(info: "ModelInfo", epochs: int) -> Table:
    """The trained model, from model.json."""
    network = info.model
    kind = "moving average (EMA) of the weights" if info.weights == "ema" else "weights as trained"
    return _pairs(
        "Model",
        {
            "Network": network.backbone,
            **{f"Option {name}": _value(value) for name, value in network.options.items()},
            "Head": network.head,
            "Pretrained weights": f"SHA-256 {info.pretrained_sha256}" if info.pretrained_sha256 else "none",
            "Loss": str(info.loss),
            "Input": f"{info.size} × {info.size} pixels, gray",
            "Outputs": f"{pluralize(len(info.findings), 'finding', 'findings')}: {info.outputs}",
            "Selected weights": f"{kind}, epoch {info.best_epoch} of {epochs} (best validation macro AP)",
            "Pixel mean and deviation": f"{info.pixel_mean:.3f} and {info.pixel_deviation:.3f} "
            "(training images, 0 to 255)",
        },
    )


def parameters(content: dict[str, Any]) -> Table:
    """Every parameter by its dotted name, except paths of data and the options of unused losses."""
    loss = content["loss"]
    data = {name: value for name, value in content["data"].items() if name not in UNTRACKED}
    content = {**content, "data": data}
    used = {name: loss[name] for name in ("name", loss["name"])}
    return _pairs("Parameters", dict(_flat({**content, "loss": used})), style="code")


def versions(packages: dict[str, str]) -> Table:
    """Versions of the packages that computed the results."""
    return _pairs("Versions", packages, ("Package", "Version"))


def second_reading(readings: Sequence[ReadingRow]) -> Table:
    """Agreement of a second reading with the labels, and the metrics against each reading."""
    metrics = {name: LABELS[name] for name in AGREEMENT_METRICS} | {
        f"{name}_{reading}": f"{LABELS[name]}, {title}"
        for name in READ_AGAINST
        for reading, title in (("first", "labels"), ("second", "second reading"))
    }
    return Table(
        "Labels and second reading",
        ("Finding", "Images", "Positive in the labels", "Positive in the second reading", "In both",
         *metrics.values(), "Note"),
        "lrrrr" + "r" * len(metrics) + "w",
        [
            [
                row.finding,
                f"{row.images:,}",
                *(f"{count or 0:,}" for count in (row.first_positives, row.second_positives, row.both_positive)),
                *(row.metrics[name].text() for name in metrics),
                row.note,
            ]
            for row in readings
        ],
    )  # fmt: skip


def _pairs(
    caption: str, content: dict[str, str], columns: tuple[str, str] = ("What", "Value"), style: str = ""
) -> Table:
    rows = [[Cell(name, style), Cell(value, style)] for name, value in content.items()]
    return Table(caption, columns, "lw", rows)


def _flat(content: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    """Dotted names and values of nested mappings, including empty mappings."""
    for name, value in content.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", _value(value)


def _value(value: Any) -> str:
    if value == {}:
        return "none"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
