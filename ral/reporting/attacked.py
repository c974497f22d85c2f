"""The report's part on attacks: a sentence, a plot and tables."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from ral.evaluation.results import Level
from ral.labels import TIERS
from ral.reporting.plots import TIER_COLOURS, TIER_MARKERS, svg
from ral.reporting.shift_plots import label_of
from ral.reporting.tables import Cell, Table
from ral.robustness.contents import AttackInfo, Attacks, GapRow, Target
from ral.wording import difference, known, number, pluralize, with_interval

TARGETS: dict[Target, str] = {"finding": "Each finding alone", "all": "All findings at once"}


def sentence(attacks: Attacks) -> str:
    """The weakest attack on each finding, in a sentence; empty without a mean."""
    info = next(info for info in attacks.attacks if info.target == "finding")
    row = attacks.row(info.name, "macro", "macro", "ap")
    if not (known(row.clean) and known(row.value)):
        return ""
    gap = next((gap for gap in attacks.gaps if gap.attack == info.name), None)
    text = (
        f"Under attacks of at most {_levels(info.eps)} of 255 on one finding at a time, macro AP changes from "
        f"{number(row.clean)} to {number(row.value)}, by {difference(row.difference, row.low, row.high)}, on "
        f"{pluralize(attacks.images, 'test image', 'test images')}"
    )
    if gap is None:
        return f"{text}."
    return (
        f"{text}; the AP of the head minus that of the tail, from {number(gap.clean)} to {number(gap.value)}."
    )


def plot(name: str, attacks: Attacks, phantom: bool) -> str:
    """AP of each tier by the size of the change, for attacks on each finding alone, with intervals of the change."""
    infos = _against(attacks, "finding")

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for index, tier in enumerate(TIERS):
            rows = [attacks.row(info.name, "tier", tier, "ap") for info in infos]
            if not all(known(row.clean) and known(row.value) for row in rows):
                continue
            x = [place + 0.04 * (index - 1) for place in range(1 + len(infos))]
            y = [rows[0].clean or 0.0, *(row.value or 0.0 for row in rows)]
            colour = TIER_COLOURS[tier]
            axes.plot(
                x, y, color=colour, marker=TIER_MARKERS[tier], markersize=4.5, linewidth=1.6, label=tier
            )
            for at, row in zip(x[1:], rows, strict=True):
                if known(row.clean) and known(row.low) and known(row.high):
                    ends = [min(1.0, max(0.0, row.clean + end)) for end in (row.low, row.high)]
                    axes.plot([at, at], ends, color=colour, linewidth=1)
        axes.set_xticks(range(1 + len(infos)), ["0", *(f"{info.eps:g}" for info in infos)])
        axes.set_xlabel("largest change of a pixel, gray levels of 255")
        axes.set_ylabel("AP")
        axes.set_ylim(0, 1)
        axes.grid(True, axis="y")
        figure.legend(loc="outside upper center", ncols=3)

    alt = (
        "Mean AP of each tier on unchanged images and under attacks within "
        f"{', '.join(f'{info.eps:g}' for info in infos)} gray levels. The numbers are in the tables below."
    )
    return svg(name, alt, phantom, (5.0, 3.2), paint)


def means(attacks: Attacks) -> Table:
    """The means over the findings and the tiers, and the gap of head and tail; a row per attack."""
    content: list[list[str | Cell]] = []
    lines: list[tuple[Level, str]] = [("macro", "macro"), *(("tier", tier) for tier in TIERS)]
    for info in attacks.attacks:
        start = [TARGETS[info.target], f"{info.eps:g}"]
        for level, name in lines:
            row = attacks.row(info.name, level, name, "ap")
            if row.findings:
                values = [number(row.clean), number(row.value), difference(row.difference, row.low, row.high)]
                content.append([*start, label_of(level, name), *values])
        content += [[*start, "head − tail", *_gap(gap)] for gap in attacks.gaps if gap.attack == info.name]
    return Table(
        "AP under attack",
        ("Attack on", "Gray levels", "Mean over", "AP, unchanged", "AP, attacked", "Difference"),
        "lrlrrr",
        content,
    )


def _gap(gap: GapRow) -> list[str]:
    sides = ((gap.clean, gap.clean_low, gap.clean_high), (gap.value, gap.value_low, gap.value_high))
    return [
        *(with_interval(*side) for side in sides),
        difference(gap.difference, gap.low, gap.high),
    ]


def by_finding(attacks: Attacks, findings: Sequence[str]) -> Table:
    """AP of each finding under each attack."""
    content: list[list[str | Cell]] = []
    for name in findings:
        rows = [attacks.row(info.name, "finding", name, "ap") for info in attacks.attacks]
        content.append([name, number(rows[0].clean), *(number(row.value) for row in rows)])
    return Table(
        "AP of the findings under attack",
        ("Finding", "AP, unchanged", *(f"{TARGETS[info.target]}, {info.eps:g}" for info in attacks.attacks)),
        "lr" + "r" * len(attacks.attacks),
        content,
    )


def _against(attacks: Attacks, target: Target) -> list[AttackInfo]:
    return [info for info in attacks.attacks if info.target == target]


def _levels(eps: float) -> str:
    return f"{eps:g} gray level{'' if eps == 1 else 's'}"
