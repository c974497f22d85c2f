"""The report's part on shortcut probes: sentences, a plot and tables."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from ral.reporting.plots import INK, plain, svg
from ral.reporting.shift_plots import LEVEL, label_of
from ral.reporting.tables import Cell, Table
from ral.robustness.contents import ProbeRow, Probes, StratumRow, WithinRow
from ral.wording import difference, known, number, p_value, percent, pluralize, with_interval

NAMES = {"source": "source", "file_type": "file type", "view": "view", "sex": "sex", "age": "age"}


def sentences(probes: Probes) -> list[str]:
    """The results in a few sentences."""
    said = []
    told = [row for row in probes.probes if known(row.auroc)]
    if told:
        better = [row for row in told if known(row.low) and row.low > 0.5]
        best = max(better or told, key=lambda row: row.auroc or 0.0)
        area = with_interval(best.auroc, best.low, best.high)
        if better:
            said.append(
                f"Of the attributes, a linear probe on the features tells {_name(best)} best: AUROC {area}."
            )
        else:
            said.append(
                "A linear probe on the features tells none of the attributes significantly better than chance; the "
                f"highest AUROC is {area}, of {_name(best)}."
            )
    tested = [row for row in probes.within if row.finding != "macro" and known(row.p_holm)]
    if tested:
        lower = [row for row in tested if is_lower(row)]
        names = "; ".join(f"{row.finding} by {NAMES[row.attribute]}" for row in lower)
        worst = min(tested, key=lambda row: row.difference or 0.0)
        fall = ""
        if worst.difference is not None and worst.difference < 0:
            # A few hundred images may not reach significance, however far a finding falls.
            fall = (
                f" The largest fall: {worst.finding} by {NAMES[worst.attribute]}, "
                f"{difference(worst.difference, worst.low, worst.high)}."
            )
        said.append(
            f"Among images with the same value of an attribute, AUROC is significantly lower in {len(lower)} of "
            f"{pluralize(len(tested), 'comparison', 'comparisons')} of a finding (p after Holm's correction below "
            f"{LEVEL}){f': {names}' if names else ''}.{fall}"
        )
    return said


def left_out(probes: Probes) -> list[str]:
    """What could not be probed, and why."""
    lines = [f"Probe of {NAMES[name]}: {reason}." for name, reason in probes.left_out.items()]
    return lines + ([f"Probes: {probes.not_available}"] if probes.not_available else [])


def plot(name: str, probes: Probes, phantom: bool) -> str:
    """AUROC of the probes with intervals."""
    rows = [row for row in probes.probes if known(row.auroc)]

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        axes.axvline(0.5, color=INK, linewidth=1, linestyle=(0, (4, 3)))
        for y, row in enumerate(rows):
            if known(row.low) and known(row.high):
                axes.plot([row.low, row.high], [y, y], color=INK, linewidth=1.6)
            axes.plot([row.auroc or 0.0], [y], "o", color=INK, markersize=5, clip_on=False)
        axes.set_yticks(range(len(rows)), [plain(_name(row), 34) for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlim(min(0.4, *(row.low or 0.5 for row in rows)), 1)
        axes.set_xlabel("AUROC of the probe; 0.5: chance")
        axes.tick_params(axis="y", length=0)
        axes.grid(True, axis="x")

    alt = f"AUROC of linear probes for {len(rows)} properties of the images. The numbers are in the table below."
    return svg(name, alt, phantom, (5.0, 1.1 + 0.235 * max(len(rows), 3)), paint)


def table(probes: Probes) -> Table:
    """A row per probe."""
    content: list[list[str | Cell]] = [
        [
            NAMES[row.attribute],
            f"{row.value}, not {row.others}" if row.others else row.value,
            f"{row.images:,}",
            percent(row.share),
            with_interval(row.auroc, row.low, row.high) if known(row.auroc) else row.note,
        ]
        for row in probes.probes
    ]
    return Table(
        f"Linear probes on the features, cross-validated by patient in {probes.folds} folds",
        ("Attribute", "Value", "Images", "Share", "AUROC"),
        "llrrr",
        content,
    )


def within(probes: Probes) -> Table:
    """AUROC among all images and among those with the same value: means, and findings that are significantly lower."""
    rows = [row for row in probes.within if row.finding == "macro" or is_lower(row)]
    content: list[list[str | Cell]] = [
        [
            NAMES[row.attribute],
            label_of("macro", "") if row.finding == "macro" else row.finding,
            number(row.auroc),
            number(row.within),
            difference(row.difference, row.low, row.high),
            p_value(row.p_holm),
        ]
        for row in rows
    ]
    return Table(
        "AUROC among all images, and among pairs of images with the same value; single findings if significantly lower",
        ("Same", "Finding", "AUROC", "Same value", "Difference", "p"),
        "llrrrr",
        content,
    )


def strata(probes: Probes, findings: Sequence[str]) -> Table:
    """AP of every finding among the images with each value."""
    by_key = {(row.attribute, row.value, row.finding): row for row in probes.strata}
    columns = list(dict.fromkeys((row.attribute, row.value) for row in probes.strata))
    content: list[list[str | Cell]] = [
        [
            label_of("macro", "") if name == "macro" else name,
            *(_ap(by_key.get((*column, name))) for column in columns),
        ]
        for name in ["macro", *findings]
    ]
    return Table(
        "AP by attribute",
        ("Finding", *(f"{NAMES[attribute]}: {value}" for attribute, value in columns)),
        "l" + "r" * len(columns),
        content,
    )


def is_lower(row: WithinRow) -> bool:
    """Whether AUROC is significantly lower among images with the same value."""
    return known(row.p_holm) and row.p_holm < LEVEL and known(row.difference) and row.difference < 0


def _ap(row: StratumRow | None) -> str:
    return number(row.ap if row else None)


def _name(row: ProbeRow) -> str:
    return f"{NAMES[row.attribute]} {row.value}"
