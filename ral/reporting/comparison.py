"""The report's comparison with the previous model: a sentence, a plot and tables of paired differences."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from ral.evaluation.specs import LABELS
from ral.evaluation.table_rows import ComparisonRow
from ral.reporting.plots import INK, plain, svg
from ral.reporting.tables import OVERALL, Table
from ral.wording import NOT_ESTIMABLE, known, number, p_value, pluralize

LEVELS = {"macro": "all", "tier": "tier", "finding": "finding"}


def macro_row(comparison: Sequence[ComparisonRow], metric: str) -> ComparisonRow | None:
    """The row of the mean over all findings; None without a comparison in this metric."""
    return next((row for row in comparison if (row.metric, row.level) == (metric, "macro")), None)


def summary_sentence(comparison: Sequence[ComparisonRow], confidence: float) -> str | None:
    """The result of the comparison in a sentence or two; None without a comparison."""
    row = macro_row(comparison, "ap")
    if row is None:
        return None
    if not known(row.difference):
        return f"There is a previous model, but {row.note or 'no metric of the two can be compared'}."
    images = pluralize(row.images or 0, "test image", "test images")
    patients = pluralize(row.patients or 0, "patient", "patients")
    if not known(row.low) or not known(row.high):
        conclusion = "too few patients for an interval, so no conclusion is possible"
    elif row.low > 0:
        conclusion = "significantly better than the previous model"
    elif row.high < 0:
        conclusion = "significantly worse than the previous model"
    else:
        conclusion = "no significant difference to the previous model"
    return (
        f"Macro AP {row.value:.3f}, previously {row.baseline_value:.3f}: {row.difference_text} "
        f"({100 * confidence:g} % interval), {conclusion}. Both models were scored on the same {images} of {patients}, "
        f"over {pluralize(row.findings, 'finding', 'findings')}."
    )


def tables_of(comparison: Sequence[ComparisonRow], order: Sequence[str]) -> dict[str, Table]:
    """A table per metric, with the findings in `order`; empty without a previous model."""
    return {
        metric: Table(
            f"{LABELS[metric]}: this model and the previous one",
            ("", "Level", "Previous", "This model", "Difference", "p", "Note"),
            "llrrrrw",
            [
                [
                    _label(row),
                    LEVELS[row.level],
                    number(row.baseline_value),
                    number(row.value),
                    row.difference_text,
                    p_value(row.p_holm),
                    row.note,
                ]
                for row in _ordered(comparison, metric, order)
            ],
            sortable=True,
        )
        for metric in dict.fromkeys(row.metric for row in comparison)
    }


def forest(comparison: Sequence[ComparisonRow], order: Sequence[str], phantom: bool) -> str:
    """Difference of AP with its interval: the macro mean, the tiers, the findings in `order`."""
    rows = _ordered(comparison, "ap", order)

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        axes.axvline(0, color=INK, linewidth=1, linestyle=(0, (4, 3)))
        for y, row in enumerate(rows):
            if not known(row.difference):
                axes.text(
                    0.99, y, NOT_ESTIMABLE, transform=axes.get_yaxis_transform(), va="center", ha="right"
                )
                continue
            if known(row.low) and known(row.high):
                axes.plot([row.low, row.high], [y, y], color=INK, linewidth=1.6)
            axes.plot([row.difference], [y], "o", color=INK, markersize=5)
        axes.set_yticks(range(len(rows)), [plain(_label(row), 22) for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlabel("AP, this model minus the previous one")
        axes.grid(True, axis="x")

    alt = "Difference of AP to the previous model with intervals; right of the dashed line, this model is better. "
    alt += "The numbers are in the table below."
    return svg("comparison", alt, phantom, (5.0, 1.0 + 0.235 * max(len(rows), 3)), paint)


def _label(row: ComparisonRow) -> str:
    if row.level == "macro":
        return OVERALL["macro"]
    return f"tier {row.name}" if row.level == "tier" else row.name


def _ordered(comparison: Sequence[ComparisonRow], metric: str, order: Sequence[str]) -> list[ComparisonRow]:
    """Macro, tiers, then the findings in `order`."""
    index = {name: number for number, name in enumerate(order)}
    rows = [row for row in comparison if row.metric == metric]
    return sorted(rows, key=lambda row: index[row.name] if row.level == "finding" else -1)
