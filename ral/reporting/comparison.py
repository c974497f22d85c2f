"""The report's comparison with the previous model: a sentence, a plot and tables of paired differences."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from ral.reporting.plots import INK, Row, plain, svg
from ral.reporting.tables import OVERALL, Table, records, text
from ral.wording import NOT_ESTIMABLE, known, number, p_value, pluralize, signed, signed_interval

LEVELS = {"macro": "all", "tier": "tier", "finding": "finding"}


def summary_sentence(comparison: pd.DataFrame, confidence: float) -> str | None:
    """The result of the comparison in a sentence or two; None without a comparison."""
    if not len(comparison):
        return None
    row = _macro(comparison)
    if not known(row["difference"]):
        return (
            f"There is a previous model, but {text(row['note']) or 'no metric of the two can be compared'}."
        )
    images = pluralize(int(row["images"]), "test image", "test images")
    patients = pluralize(int(row["patients"]), "patient", "patients")
    if not known(row["low"]) or not known(row["high"]):
        conclusion = "too few patients for an interval, so no conclusion is possible"
    elif row["low"] > 0:
        conclusion = "significantly better than the previous model"
    elif row["high"] < 0:
        conclusion = "significantly worse than the previous model"
    else:
        conclusion = "no significant difference to the previous model"
    return (
        f"Macro AP {row['value']:.3f}, previously {row['baseline_value']:.3f}: {_difference(row)} "
        f"({100 * confidence:g} % interval), {conclusion}. Both models were scored on the same {images} of {patients}, "
        f"over {pluralize(int(row['findings']), 'finding', 'findings')}."
    )


def tables_of(comparison: pd.DataFrame, order: Sequence[str]) -> dict[str, Table]:
    """A table per metric, with the findings in `order`; empty without a previous model."""
    result = {}
    for metric in comparison["metric"].unique():
        name = str(metric).upper()
        result[str(metric)] = Table(
            f"{name}: this model and the previous one",
            ("", "Level", "Previous", "This model", "Difference", "p", "Note"),
            "llrrrrw",
            [
                [
                    _label(row),
                    LEVELS[row["level"]],
                    number(row["baseline_value"]),
                    number(row["value"]),
                    _difference(row),
                    p_value(row["p_holm"]),
                    text(row["note"]),
                ]
                for row in _ordered(comparison, metric, order)
            ],
            sortable=True,
        )
    return result


def forest(comparison: pd.DataFrame, order: Sequence[str], phantom: bool) -> str:
    """Difference of AP with its interval: the macro mean, the tiers, the findings in `order`."""
    rows = _ordered(comparison, "ap", order)

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        axes.axvline(0, color=INK, linewidth=1, linestyle=(0, (4, 3)))
        for y, row in enumerate(rows):
            if not known(row["difference"]):
                axes.text(
                    0.99, y, NOT_ESTIMABLE, transform=axes.get_yaxis_transform(), va="center", ha="right"
                )
                continue
            if known(row["low"]) and known(row["high"]):
                axes.plot([row["low"], row["high"]], [y, y], color=INK, linewidth=1.6)
            axes.plot([row["difference"]], [y], "o", color=INK, markersize=5)
        axes.set_yticks(range(len(rows)), [plain(_label(row), 22) for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlabel("AP, this model minus the previous one")
        axes.grid(True, axis="x")

    alt = "Difference of AP to the previous model with intervals; right of the dashed line, this model is better. "
    alt += "The numbers are in the table below."
    return svg("comparison", alt, phantom, (5.0, 1.0 + 0.235 * max(len(rows), 3)), paint)


def _label(row: Row) -> str:
    if row["level"] == "macro":
        return OVERALL["macro"]
    return f"tier {row['name']}" if row["level"] == "tier" else str(row["name"])


def _ordered(comparison: pd.DataFrame, metric: str, order: Sequence[str]) -> list[Row]:
    """Macro, tiers, then the findings in `order`."""
    index = {name: number for number, name in enumerate(order)}
    rows = records(comparison[comparison["metric"] == metric])
    return sorted(rows, key=lambda row: index[row["name"]] if row["level"] == "finding" else -1)


def _macro(comparison: pd.DataFrame) -> dict[str, Any]:
    return records(comparison[(comparison["metric"] == "ap") & (comparison["level"] == "macro")])[0]


def _difference(row: Row) -> str:
    if not known(row["difference"]):
        return NOT_ESTIMABLE
    return f"{signed(row['difference'])} ({signed_interval(row['low'], row['high'])})"
