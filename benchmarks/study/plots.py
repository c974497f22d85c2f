"""The plots of RESULTS.md: PNG files whose bytes depend on the numbers only."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator, StrMethodFormatter

from ral.evaluation.results import Interval
from ral.files import atomic_write
from ral.reporting.plots import STYLE
from ral.wording import known

# An interval above 0, one below 0, and one that includes it.
BETTER, WORSE, OPEN = "#2f78c4", "#b8437a", "#6b7280"
LINES = ("#2f78c4", "#c0760f", "#b8437a", "#3a7d44", "#6b7280")
MARKERS = ("o", "s", "D", "^", "v")
DPI = 130

Estimates = Mapping[str, Interval | None]


def forest(path: Path, title: str, panels: Mapping[str, Estimates], unit: str) -> None:
    """Paired differences with intervals: one panel per baseline, one row per arm or finding.

    Args:
        path: the file.
        title: of the figure.
        panels: title of the panel -> name of the row -> difference; all panels have the same rows. None: no difference.
        unit: label of the x axis.
    """
    names = list(next(iter(panels.values())))

    def paint(figure: Figure) -> None:
        figure.suptitle(title, fontsize=10)
        all_axes = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
        for axes, (panel, rows) in zip(all_axes, panels.items(), strict=True):
            axes.set_title(panel)
            axes.axvline(0, linewidth=0.9, color="black")
            for y, one in enumerate(rows[name] for name in names):
                _interval(axes, y, one)
            axes.grid(axis="x")
            axes.tick_params(axis="y", length=0)
        all_axes[0].set_yticks(range(len(names)), names)
        all_axes[0].set_ylim(len(names) - 0.4, -0.6)
        all_axes[0].locator_params(axis="x", nbins=5)
        figure.supxlabel(unit, fontsize=9)

    _save(path, (2.2 + 2.3 * len(panels), 1.2 + 0.24 * max(len(names), 3)), paint)


def curves(path: Path, panels: Mapping[str, Mapping[str, Mapping[float, Interval]]], label: str) -> None:
    """A metric with intervals against the imbalance ratio: one panel per level, one line per arm.

    Args:
        path: the file.
        panels: title of the panel -> arm -> ratio -> value.
        label: of the y axes.
    """

    def paint(figure: Figure) -> None:
        all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, (panel, lines) in zip(all_axes, panels.items(), strict=True):
            axes.set_title(panel)
            axes.set_xscale("log")
            ratios = sorted({ratio for line in lines.values() for ratio in line})
            for number, (name, line) in enumerate(lines.items()):
                # Neighbours are moved apart a little, so that their intervals can be seen.
                x = np.array(list(line)) * 1.06 ** (number - (len(lines) - 1) / 2)
                colour = LINES[number % len(LINES)]
                y = [_number(one.value) for one in line.values()]
                axes.plot(
                    x, y, marker=MARKERS[number % len(MARKERS)], color=colour, linewidth=1.3, label=name
                )
                ends = (
                    [_number(one.low) for one in line.values()],
                    [_number(one.high) for one in line.values()],
                )
                axes.vlines(x, *ends, color=colour, linewidth=1)
            axes.xaxis.set_major_locator(FixedLocator(ratios))
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.set_xlabel("imbalance ratio of the training set")
            axes.set_ylabel(label)
            axes.grid(True)
        all_axes[0].legend(loc="best")

    _save(path, (3.4 * len(panels) + 0.4, 3.0), paint)


def _interval(axes: Axes, y: int, one: Interval | None) -> None:
    """One row of a forest plot; nothing without a difference."""
    if one is None or not known(one.value):
        return
    colour = OPEN
    if known(one.low) and known(one.high):
        colour = BETTER if one.low > 0 else WORSE if one.high < 0 else OPEN
        axes.plot([one.low, one.high], [y, y], color=colour, linewidth=1.6, solid_capstyle="butt")
    axes.plot([one.value], [y], "o", color=colour, markersize=4.5)


def _number(value: float | None) -> float:
    return value if known(value) else float("nan")


def _save(path: Path, size: Sequence[float], paint: Callable[[Figure], None]) -> None:
    """Draw a figure of `size` inches and write it, without the name and version of the program."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context():
        # A user's matplotlibrc must not change the output.
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        figure = Figure(figsize=(size[0], size[1]), layout="constrained")
        paint(figure)
        with atomic_write(path) as draft:
            figure.savefig(draft, format="png", dpi=DPI, metadata={"Software": None})
