"""The plots of the report's section on changed images."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from ral.evaluation.results import Level
from ral.labels import TIERS
from ral.reporting.plots import INK, TIER_COLOURS, TIER_MARKERS, plain, svg
from ral.robustness.contents import Robustness, ShiftInfo, ShiftRow, Shifts
from ral.wording import known, number

# A change is marked if its p value after Holm's correction is below this.
LEVEL = 0.05
# The colours of the heat map end at the largest change, but at no less than this.
LEAST = 0.02


def heat(name: str, shifts: Shifts, findings: Sequence[str], phantom: bool) -> str:
    """Change of AP by finding and shift, as a heat map with the means on top.

    Args:
        name: prefix of the ids, unique within a page.
        shifts: the results.
        findings: in the order of the rows.
        phantom: whether to draw the watermark.
    """
    infos = scored(shifts)
    lines = lines_of(shifts, findings)
    rows = [[shifts.row(info.name, level, one, "ap") for info in infos] for level, one in lines]
    values = np.array(
        [[np.nan if row is None or row.difference is None else row.difference for row in line] for line in rows],
        dtype=float,
    )  # fmt: skip
    known_values = values[np.isfinite(values)]
    limit = max(LEAST, float(np.abs(known_values).max()) if known_values.size else LEAST)

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        # With few colours, matplotlib draws the colour bar as shapes instead of a raster image.
        colours = matplotlib.colormaps["RdBu"].resampled(21)
        shade = axes.pcolormesh(np.ma.masked_invalid(values), cmap=colours, vmin=-limit, vmax=limit)
        marks = [
            (x + 0.5, y + 0.5)
            for y, line in enumerate(rows)
            for x, row in enumerate(line)
            if row is not None and is_significant(row)
        ]
        if marks:
            # Black with a white edge: visible on every colour of the map, in light and dark mode.
            axes.plot(
                *zip(*marks, strict=True), "o", color="#000000", markersize=4, markeredgecolor="#ffffff"
            )
        axes.set_yticks(np.arange(len(lines)) + 0.5, [plain(label_of(*line), 22) for line in lines])
        axes.set_xticks(np.arange(len(infos)) + 0.5, [plain(info.label, 34) for info in infos], rotation=90)
        axes.axhline(len(lines) - len(findings), color=INK, linewidth=1)
        axes.set_ylim(len(lines), 0)
        axes.tick_params(length=0)
        figure.colorbar(
            shade, ax=axes, shrink=0.6, ticks=(-limit, 0, limit), format="%+.2f", label="change of AP"
        )

    alt = (
        f"Change of AP of {len(findings)} findings and their means under {len(infos)} shifts, as a heat map. "
        f"From {number(float(known_values.min())) if known_values.size else 'none'} to "
        f"{number(float(known_values.max())) if known_values.size else 'none'}. The numbers are in the tables below."
    )
    return svg(name, alt, phantom, (3.2 + 0.3 * len(infos), 3.0 + 0.235 * len(lines)), paint)


def jpeg(name: str, shifts: Shifts, phantom: bool) -> str:
    """Change of AP of each tier by JPEG quality, a line per tier, with intervals."""
    infos = sorted(
        (info for info in scored(shifts) if info.kind == "jpeg"), key=lambda info: -(info.strength or 0)
    )
    labels = ["none", *(f"{info.strength:g}" for info in infos)]

    changes = [
        abs(row.difference)
        for info in infos
        for tier in TIERS
        if (row := shifts.row(info.name, "tier", tier, "ap")) and known(row.difference)
    ]
    # The wide interval of a tier with one finding would hide the lines.
    limit = max(LEAST, 2.5 * max(changes, default=0.0))

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        axes.set_ylim(-limit, limit)
        axes.axhline(0, color=INK, linewidth=1, linestyle=(0, (4, 3)))
        for index, tier in enumerate(TIERS):
            rows = [shifts.row(info.name, "tier", tier, "ap") for info in infos]
            if not all(row is not None and known(row.difference) for row in rows):
                continue
            x = np.arange(len(labels)) + 0.08 * (index - 1)
            y = [0.0, *(row.difference or 0.0 for row in rows if row is not None)]
            colour = TIER_COLOURS[tier]
            axes.plot(
                x, y, color=colour, marker=TIER_MARKERS[tier], markersize=4.5, linewidth=1.6, label=tier
            )
            for at, row in zip(x[1:], rows, strict=True):
                if row is not None and known(row.low) and known(row.high):
                    axes.plot([at, at], [row.low, row.high], color=colour, linewidth=1)
        axes.set_xticks(range(len(labels)), labels)
        axes.set_xlabel("JPEG quality")
        axes.set_ylabel("change of AP")
        axes.grid(True, axis="y")
        figure.legend(loc="outside upper center", ncols=3)

    alt = (
        f"Change of the mean AP of each tier by JPEG quality: {', '.join(labels)}. "
        "The numbers are in the tables below."
    )
    return svg(name, alt, phantom, (5.0, 3.2), paint)


def flip(name: str, result: Robustness, phantom: bool) -> str:
    """Share of the images whose call changes if left and right are exchanged, by finding with intervals."""
    assert result.flip is not None
    assert result.audited is not None
    tiers = {finding.name: finding.tier for finding in result.audited.findings}
    rows = [result.flip.row("finding", name) for name in tiers]

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for y, row in enumerate(rows):
            if not known(row.changed_calls):
                axes.text(0.99, y, "no calls", transform=axes.get_yaxis_transform(), va="center", ha="right")
                continue
            tier = tiers[row.name]
            if known(row.low) and known(row.high):
                axes.plot([100 * row.low, 100 * row.high], [y, y], color=TIER_COLOURS[tier], linewidth=1.6)
            axes.plot(
                [100 * row.changed_calls],
                [y],
                TIER_MARKERS[tier],
                color=TIER_COLOURS[tier],
                markersize=5.5,
                clip_on=False,
            )
        axes.set_yticks(range(len(rows)), [plain(row.name, 22) for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlim(left=0)
        axes.set_xlabel("changed calls, % of the images")
        axes.tick_params(axis="y", length=0)
        axes.grid(True, axis="x")

    alt = (
        f"Share of the images whose call changes if left and right are exchanged, for {len(rows)} findings. "
        "The numbers are in the table below."
    )
    return svg(name, alt, phantom, (5.0, 1.1 + 0.235 * max(len(rows), 3)), paint)


def scored(shifts: Shifts) -> list[ShiftInfo]:
    """The shifts that have rows."""
    return [info for info in shifts.shifts if info.not_available is None]


def lines_of(shifts: Shifts, findings: Sequence[str]) -> list[tuple[Level, str]]:
    """Level and name of all findings, the tiers that have a mean, and each finding."""
    first = scored(shifts)[0].name
    rows = {tier: shifts.row(first, "tier", tier, "ap") for tier in TIERS}
    tiers: list[tuple[Level, str]] = [("tier", tier) for tier, row in rows.items() if row and row.findings]
    return [("macro", "macro"), *tiers, *(("finding", name) for name in findings)]


def label_of(level: str, name: str) -> str:
    """Name of a row: of a finding, a tier, or all findings."""
    return "all findings" if level == "macro" else f"tier {name}" if level == "tier" else name


def is_significant(row: ShiftRow) -> bool:
    """Whether the difference is significant after Holm's correction."""
    return row.p_holm is not None and row.p_holm < LEVEL
