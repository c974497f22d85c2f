"""The plots of the report: matplotlib figures as inline SVG, reproducible byte by byte."""

import io
import math
from collections.abc import Callable, Sequence
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from ral.evaluation.specs import LABELS
from ral.evaluation.table_rows import FindingRow
from ral.labels import TIERS, marked
from ral.wording import NOT_ESTIMABLE, known, percent

Curve = tuple[NDArray[np.float64], NDArray[np.float64]]

# Tiers also differ in shape, for readers with colour vision deficiency. The colours are also in report.css.
TIER_COLOURS = {"head": "#2f78c4", "medium": "#c0760f", "tail": "#b8437a"}
TIER_MARKERS = {"head": "o", "medium": "s", "tail": "D"}
# Replaced by the text colour of the page, which differs between light and dark mode.
INK = "#0b0c0d"

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.labelsize": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.axisbelow": True,
    "grid.alpha": 0.15,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.handletextpad": 0.4,
    "legend.columnspacing": 1.2,
    **dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color"), INK
    ),
}


def forest(name: str, metric: str, rows: Sequence[FindingRow], chance: float | None, phantom: bool) -> str:
    """One metric of every finding with its interval, in the order of `rows` from the top.

    Args:
        name: prefix of the ids, unique within a page.
        metric: of `specs.FINDING_METRICS`.
        rows: rows of findings.csv.
        chance: chance level of the metric; None means the finding's own prevalence in test.
        phantom: whether to draw the watermark.
    """

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for y, row in enumerate(rows):
            one = row.metrics[metric]
            if not known(one.value):
                axes.text(
                    0.99, y, NOT_ESTIMABLE, transform=axes.get_yaxis_transform(), va="center", ha="right"
                )
                continue
            colour = TIER_COLOURS[row.tier]
            if known(one.low) and known(one.high):
                axes.plot([one.low, one.high], [y, y], color=colour, linewidth=1.6, solid_capstyle="butt")
            axes.plot([one.value], [y], TIER_MARKERS[row.tier], color=colour, markersize=5.5, clip_on=False)
            if chance is None:
                axes.plot([row.test_prevalence], [y], "|", color=INK, markersize=10, markeredgewidth=1.3)
        intervals = [row.metrics[metric] for row in rows]
        ends = [end for one in intervals for end in (one.value, one.low, one.high) if known(end)]
        if chance is None:
            axes.set_xlim(0, min(1.0, 1.05 * max(ends, default=1.0)) or 1.0)
        else:
            axes.axvline(chance, color=INK, linewidth=1, linestyle=(0, (4, 3)))
            axes.set_xlim(max(0.0, min([*ends, chance]) - 0.05), 1)
        axes.set_xlabel(LABELS[metric])
        _finding_axis(axes, rows)
        line = (
            Line2D([], [], color=INK, marker="|", linestyle="none", markersize=9, label="chance")
            if chance is None
            else Line2D([], [], color=INK, linestyle=(0, (4, 3)), linewidth=1, label="chance")
        )
        figure.legend(handles=[*_tier_handles(rows), line], loc="outside upper center", ncols=4)

    level = "the finding's prevalence in the test images" if chance is None else f"{chance}"
    alt = (
        f"{LABELS[metric]} of {len(rows)} findings with intervals, the most frequent finding first. "
        f"Chance level: {level}. {_extremes(rows, metric)}The numbers are in the table of findings."
    )
    return svg(name, alt, phantom, (5.0, 1.1 + 0.235 * max(len(rows), 3)), paint)


def points(curves: pd.DataFrame, finding: str, curve: str) -> Curve:
    """x and y of one curve of curves.csv; empty if the finding has none."""
    part = curves[(curves["finding"] == finding) & (curves["curve"] == curve)]
    return part["x"].to_numpy(dtype=float), part["y"].to_numpy(dtype=float)


def curve_pair(name: str, row: FindingRow, curves: pd.DataFrame, phantom: bool) -> str:
    """ROC and precision–recall curves of one finding, with the chance level.

    Args:
        name: prefix of the ids, unique within a page.
        row: the finding's row of findings.csv.
        curves: the finding's rows of curves.csv.
        phantom: whether to draw the watermark.
    """
    colour = TIER_COLOURS[row.tier]
    roc, pr = (points(curves, row.finding, kind) for kind in ("roc", "pr"))

    def paint(figure: Figure) -> None:
        left, right = figure.subplots(1, 2, gridspec_kw={"wspace": 0.12})
        left.plot([0, 1], [0, 1], color=INK, alpha=0.5, linewidth=0.9, linestyle=(0, (4, 3)))
        left.plot(*roc, color=colour, linewidth=1.6)
        left.set(title="ROC", xlabel="false positive rate", ylabel="true positive rate")
        right.axhline(row.test_prevalence, color=INK, alpha=0.5, linewidth=0.9, linestyle=(0, (4, 3)))
        right.plot(*pr, color=colour, linewidth=1.6)
        right.set(title="Precision–recall", xlabel="recall", ylabel="precision")
        for axes in (left, right):
            axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
            axes.grid(True)

    alt = (
        f"{plain(row.finding)}: ROC and precision–recall curves on the test images. Dashed: chance. "
        "Points of the curves are in the table below the plots."
    )
    return svg(name, alt, phantom, (4.4, 2.3), paint)


def epochs(
    name: str,
    label: str,
    numbers: Sequence[int],
    values: Sequence[float],
    averaged: Sequence[float],
    best: int,
    phantom: bool,
) -> str:
    """One quantity after every epoch, with the selected epoch marked.

    Args:
        name: prefix of the ids in the SVG.
        label: name of the quantity.
        numbers: epochs.
        values: the quantity with the trained weights.
        averaged: the quantity with the EMA weights; empty or NaN if there are none.
        best: the selected epoch.
        phantom: whether to draw the watermark.
    """
    trained, ema = ([value if known(value) else math.nan for value in part] for part in (values, averaged))
    has_ema = not np.isnan(ema).all() if ema else False

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        axes.axvline(best, color=INK, alpha=0.6, linewidth=1, linestyle=(0, (4, 3)))
        axes.plot(
            numbers,
            trained,
            color=TIER_COLOURS["head"],
            linewidth=1.6,
            marker=".",
            markersize=5,
            label="as trained",
        )
        if has_ema:
            axes.plot(
                numbers,
                ema,
                color=TIER_COLOURS["medium"],
                linewidth=1.6,
                linestyle="--",
                label="moving average",
            )
            axes.legend(loc="best", frameon=False)
        axes.set_xlabel(f"epoch (dashed: selected epoch {best})")
        axes.set_title(label, loc="left")
        axes.set_xlim(min(numbers, default=1) - 0.5, max(numbers, default=1) + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.grid(True)

    alt = (
        f"{label} after each of {len(numbers)} epochs; epoch {best} was selected. "
        "The numbers are in the table of epochs."
    )
    return svg(name, alt, phantom, (4.4, 2.6), paint)


def prevalences(name: str, rows: Sequence[FindingRow], head: float, tail: float, phantom: bool) -> str:
    """Training prevalence of each finding, on a logarithmic axis with the limits of the tiers."""
    shares = [row.train_prevalence for row in rows]
    lowest = min([share for share in shares if share > 0] + [tail])
    # Space to the left of the rarest finding, so that its bar is visible.
    left = lowest / 2

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        axes.set_xscale("log")
        for y, (row, share) in enumerate(zip(rows, shares, strict=True)):
            colour = TIER_COLOURS[row.tier]
            axes.barh(y, max(share - left, 0), left=left, height=0.66, color=colour)
            axes.text(max(share, left) * 1.06, y, percent(share), va="center", fontsize=8)
        for limit in (head, tail):
            axes.axvline(limit, color=INK, alpha=0.6, linewidth=1, linestyle=(0, (4, 3)))
        right = max([*shares, head]) * 2
        axes.set_xlim(left, right)
        decades = range(math.floor(math.log10(left)), math.ceil(math.log10(right)) + 1)
        axes.xaxis.set_major_locator(FixedLocator([10.0**d for d in decades if left <= 10.0**d <= right]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g} %"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("share of training images (logarithmic)")
        _finding_axis(axes, rows)
        line = Line2D([], [], color=INK, alpha=0.6, linestyle=(0, (4, 3)), linewidth=1, label="tier limit")
        figure.legend(handles=[*_tier_handles(rows), line], loc="outside upper center", ncols=4)

    alt = (
        f"Share of training images with each of {len(rows)} findings, on a logarithmic axis, from "
        f"{percent(max(shares, default=0.0))} to {percent(min(shares, default=0.0))}. "
        "The numbers are in the table of labels."
    )
    return svg(name, alt, phantom, (5.0, 1.1 + 0.235 * max(len(rows), 3)), paint)


def plain(text: str, longest: int = 200) -> str:
    """Text without characters that are invalid in XML, shortened to fit the plot."""
    text = "".join(character if character.isprintable() else "\ufffd" for character in str(text))
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def _finding_axis(axes: Axes, rows: Sequence[FindingRow]) -> None:
    """Names of the findings down the left side."""
    axes.set_yticks(range(len(rows)), [plain(row.finding, 22) for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(True, axis="x")


def _tier_handles(rows: Sequence[FindingRow]) -> list[Line2D]:
    present = [tier for tier in TIERS if any(row.tier == tier for row in rows)]
    return [
        Line2D([], [], linestyle="none", marker=TIER_MARKERS[tier], color=TIER_COLOURS[tier], label=tier)
        for tier in present
    ]


def _extremes(rows: Sequence[FindingRow], metric: str) -> str:
    """The highest and the lowest value, for the alternative text."""
    values = [(value, plain(row.finding)) for row in rows if known(value := row.value(metric))]
    if not values:
        return "No finding is estimable. "
    (low, lowest), (high, highest) = min(values), max(values)
    return f"Highest: {highest}, {high:.3f}; lowest: {lowest}, {low:.3f}. "


def svg(
    name: str, alt: str, phantom: bool, size: tuple[float, float], paint: Callable[[Figure], None]
) -> str:
    """Draw a figure of `size` inches and return it as an SVG element for an HTML page."""
    buffer = io.BytesIO()
    with matplotlib.rc_context():
        # A user's matplotlibrc must not change the output.
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({**STYLE, "svg.hashsalt": name})
        figure = Figure(figsize=size, layout="constrained")
        paint(figure)
        if phantom:
            # Font size that keeps the watermark inside the plot.
            font_size = 72 * min(math.hypot(*size) / 7.5, size[1] / 2)
            tilt = math.degrees(math.atan2(size[1], size[0])) * 0.8
            figure.text(
                0.53, 0.5, "PHANTOM", ha="center", va="center", rotation=tilt, fontsize=font_size, alpha=0.15,
                weight="bold", color="#d43c3c",
            )  # fmt: skip
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    return _inline(buffer.getvalue(), name, marked(alt, phantom, ". "))


def _inline(document: bytes, name: str, alt: str) -> str:
    """Convert matplotlib's SVG document to an inline element with unique ids, page colours and alternative text."""
    root = ElementTree.fromstring(document)
    for parent in root.iter():
        for child in list(parent):
            # A style rule would apply to the whole page.
            if child.tag.endswith(("}style", "}metadata")):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        for key, value in list(element.attrib.items()):
            del element.attrib[key]
            local = key.rpartition("}")[2]
            if local == "id":
                value = f"{name}-{value}"
            elif local == "href":
                value = value.replace("#", f"#{name}-")
            else:
                value = value.replace("url(#", f"url(#{name}-").replace(INK, "currentColor")
            element.set(local, value)
    for key in ("width", "height", "version"):
        del root.attrib[key]
    root.attrib |= {"role": "img", "aria-label": alt}
    return ElementTree.tostring(root, encoding="unicode")
