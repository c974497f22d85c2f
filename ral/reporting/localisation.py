"""The report's section on boxes: how well the heat maps point at the findings, beside other methods and baselines."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ral.evaluation.localisation import BASELINES, LABELS, MACRO, LocalisationRow, read_table
from ral.reporting.plots import INK, plain, svg
from ral.reporting.tables import Table
from ral.wording import difference, known, number, pluralize, signed, signed_interval, with_interval

# The metric that decides which heat maps point best; it needs no cut of the map.
DECISIVE = "pointing"
COLOUR = "#2f78c4"


@dataclass(frozen=True)
class Localisation:
    """Content of the section."""

    summary: str
    choice: str
    """Which method is best on the validation images."""
    methods: Table
    findings: Table | None
    """None if there are no heat maps in the gallery."""
    plot: Markup | None


def section(table: pd.DataFrame | None, order: Sequence[str], phantom: bool) -> Localisation | None:
    """The section; None without boxes on test images.

    Args:
        table: localisation.csv; None if there are no boxes.
        order: the findings.
        phantom: whether to mark the plot.
    """
    rows = [] if table is None else read_table(table)
    test = [row for row in rows if row.split == "test"]
    if not test:
        return None
    shown = [row for row in test if row.shown == "yes"]
    centre = {(row.finding, row.metric): row for row in test if row.method == "centre"}
    findings = [name for name in order if any(row.finding == name for row in test)]
    return Localisation(
        summary=summary(rows),
        choice=choice([row for row in rows if row.split == "val"]),
        methods=_methods(test),
        findings=_findings(shown, centre, findings) if shown else None,
        plot=Markup(_forest(shown, centre, findings, phantom)) if shown else None,
    )


def summary(rows: Sequence[LocalisationRow]) -> str:
    """One sentence on the gallery's heat maps on the test images; empty without boxes there."""
    macro = [row for row in rows if (row.split, row.finding, row.metric) == ("test", MACRO, DECISIVE)]
    if not macro:
        return ""
    extent = (
        f"{pluralize(macro[0].images, 'test image', 'test images')} of "
        f"{pluralize(macro[0].patients, 'patient', 'patients')} with boxes"
    )
    baselines = " and ".join(
        f"{number(row.value)} for {'the centre' if row.method == 'centre' else 'a random point'}"
        for row in macro
        if row.method in BASELINES
    )
    shown = next((row for row in macro if row.shown == "yes"), None)
    if shown is None:
        return f"On {extent}, no heat map was made that could be compared; pointing game: {baselines}."
    return (
        f"On {extent}, the maximum of the heat map ({shown.name}) is in the box of the finding with a share of "
        f"{with_interval(shown.value, shown.low, shown.high)}, mean over the findings; {baselines} of the image."
    )


def choice(validation: Sequence[LocalisationRow]) -> str:
    """Whether another method points better on the validation images; empty without boxes there."""
    macro = [row for row in validation if (row.finding, row.metric) == (MACRO, DECISIVE) and known(row.value)]
    methods = [row for row in macro if row.method not in BASELINES]
    if not methods:
        return ""
    best = max(methods, key=lambda row: row.value or 0.0)
    if best.shown == "yes":
        return f"On the validation images, no other method and layer points better than these heat maps ({best.name})."
    if not known(best.difference):
        return f"On the validation images, {best.name} points best: {number(best.value)}."
    gain = f"{signed(best.difference)} ({signed_interval(best.difference_low, best.difference_high)})"
    if known(best.difference_low) and best.difference_low > 0:
        return (
            f"On the validation images, {best.name} points better than these heat maps: {gain}. explain.method and "
            "explain.layer choose it."
        )
    return (
        f"On the validation images, {best.name} has the highest value, but the difference to these heat maps may be "
        f"chance: {gain}."
    )


def _methods(test: Sequence[LocalisationRow]) -> Table:
    """Means over the findings, of every method."""
    content = []
    for name in dict.fromkeys(row.name for row in test):
        own = {row.metric: row for row in test if row.name == name and row.finding == MACRO}
        first = own[DECISIVE]
        content.append(
            [
                f"{name}, shown" if first.shown == "yes" else name,
                *(with_interval(own[metric].value, own[metric].low, own[metric].high) for metric in LABELS),
                "" if first.shown == "yes" or not known(first.difference)
                else difference(first.difference, first.difference_low, first.difference_high),
            ]
        )  # fmt: skip
    return Table(
        "Heat maps and boxes: means over the findings, test images",
        ("Method", *LABELS.values(), "Pointing game, difference to the shown"),
        "l" + "r" * (len(LABELS) + 1),
        content,
    )


def _findings(
    shown: Sequence[LocalisationRow],
    centre: dict[tuple[str, str], LocalisationRow],
    findings: Sequence[str],
) -> Table:
    """Every finding, with the heat maps that are shown."""
    by_key = {(row.finding, row.metric): row for row in shown}
    content = []
    for finding in findings:
        own = [by_key[finding, metric] for metric in LABELS]
        content.append(
            [
                finding,
                f"{own[0].images:,}",
                f"{own[0].patients:,}",
                *(with_interval(row.value, row.low, row.high) for row in own),
                number(centre[finding, DECISIVE].value),
            ]
        )
    return Table(
        f"Heat maps and boxes by finding: {shown[0].name}, test images",
        ("Finding", "Images", "Patients", *LABELS.values(), "Pointing game of the centre"),
        "lrr" + "r" * (len(LABELS) + 1),
        content,
        sortable=True,
    )


def _forest(
    shown: Sequence[LocalisationRow],
    centre: dict[tuple[str, str], LocalisationRow],
    findings: Sequence[str],
    phantom: bool,
) -> str:
    """The pointing game of each finding with its interval, and that of the centre."""
    rows = {row.finding: row for row in shown if row.metric == DECISIVE}

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for y, finding in enumerate(findings):
            row, base = rows[finding], centre[finding, DECISIVE].value
            if known(row.low) and known(row.high):
                axes.plot([row.low, row.high], [y, y], color=COLOUR, linewidth=1.6, solid_capstyle="butt")
            if known(row.value):
                axes.plot([row.value], [y], "o", color=COLOUR, markersize=5.5, clip_on=False)
            if known(base):
                axes.plot([base], [y], "|", color=INK, markersize=10, markeredgewidth=1.3, clip_on=False)
        axes.set_yticks(range(len(findings)), [plain(name, 22) for name in findings])
        axes.set_ylim(len(findings) - 0.5, -0.5)
        axes.set_xlim(0, 1)
        axes.set_xlabel("pointing game")
        axes.grid(True, axis="x")
        handles: list[Any] = [
            Line2D([], [], color=COLOUR, marker="o", linewidth=1.6, markersize=5.5, label="heat map"),
            Line2D(
                [], [], color=INK, marker="|", linestyle="none", markersize=9, label="centre of the image"
            ),
        ]
        figure.legend(handles=handles, loc="outside upper center", ncols=2)

    alt = (
        "Pointing game of each finding with intervals, and of the centre of the image. The numbers are in the table "
        "below."
    )
    return svg("localisation", alt, phantom, (5.0, 1.1 + 0.235 * max(len(findings), 3)), paint)
