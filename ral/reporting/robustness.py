"""The report's section on robustness: sentences, plots and tables of robustness.json."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from ral.evaluation.specs import LABELS
from ral.reporting import attacked, probed, shift_plots
from ral.reporting.shift_plots import LEVEL, is_significant, label_of, lines_of, scored
from ral.reporting.tables import Cell, Table
from ral.robustness.contents import Flip, Metric, Robustness, ShiftInfo, ShiftRow, Shifts
from ral.wording import difference, interval, known, number, p_value, percent, pluralize, signed


@dataclass(frozen=True)
class Section:
    """What the template shows of the audit; a part that was not requested is empty."""

    sentences: list[str]
    plots: dict[str, Markup]
    tables: dict[str, Table]
    not_available: list[str]


def section(result: Robustness, phantom: bool) -> Section | None:
    """The section of the report; None if the step is off.

    Args:
        result: content of robustness.json.
        phantom: whether to draw the watermark.
    """
    if result.audited is None:
        return None
    plots, tables, missing = {}, {}, []
    findings = [finding.name for finding in result.audited.findings]
    if result.shifts is not None and result.shifts.rows:
        plots["heat"] = Markup(shift_plots.heat("shiftheat", result.shifts, findings, phantom))
        if any(info.kind == "jpeg" for info in scored(result.shifts)):
            plots["jpeg"] = Markup(shift_plots.jpeg("shiftjpeg", result.shifts, phantom))
        tables["shifts"] = means(result.shifts)
        tables["ap"] = by_finding(result.shifts, findings)
        tables["calls"] = calls(result.shifts, findings)
        missing = [
            f"{info.label}: {info.not_available}." for info in result.shifts.shifts if info.not_available
        ]
    if result.flip is not None:
        plots["flip"] = Markup(shift_plots.flip("shiftflip", result, phantom))
        tables["flip"] = flip_table(result.flip, findings)
    if result.probes is not None:
        missing += probed.left_out(result.probes)
        if any(known(row.auroc) for row in result.probes.probes):
            plots["probes"] = Markup(probed.plot("shortcutprobes", result.probes, phantom))
        if result.probes.probes or result.probes.within:
            tables["probes"], tables["within"] = probed.table(result.probes), probed.within(result.probes)
            tables["strata"] = probed.strata(result.probes, findings)
    if result.attacks is not None:
        plots["attacks"] = Markup(attacked.plot("attacked", result.attacks, phantom))
        tables["attacks"] = attacked.means(result.attacks)
        tables["attacked"] = attacked.by_finding(result.attacks, findings)
    return Section(sentences(result), plots, tables, missing)


def sentences(result: Robustness) -> list[str]:
    """The results in a few sentences."""
    said = []
    if result.shifts is not None:
        rows = [
            (info, row)
            for info in scored(result.shifts)
            if (row := _macro(result.shifts, info, "ap")) and known(row.difference)
        ]
        if rows:
            info, worst = min(rows, key=lambda item: item[1].difference or 0.0)
            lower = sum(is_significant(row) and (row.difference or 0) < 0 for _, row in rows)
            said.append(
                f"Macro AP falls significantly under {lower} of {pluralize(len(rows), 'shift', 'shifts')} (p after "
                f"Holm's correction below {LEVEL}). The lowest: {info.label}, "
                f"{difference(worst.difference, worst.low, worst.high)}."
            )
        said += _about_calls(result.shifts)
    if result.flip is not None and known(result.flip.changed_images):
        changed = result.flip
        said.append(
            f"If left and right are exchanged, at least one call changes on {percent(changed.changed_images)} of the "
            f"images ({_shares(changed.low, changed.high)})."
        )
    if result.probes is not None:
        said += probed.sentences(result.probes)
    if result.attacks is not None and (sentence := attacked.sentence(result.attacks)):
        said.append(sentence)
    return said


def _about_calls(shifts: Shifts) -> list[str]:
    """How the number of calls changes; nothing if there are none."""
    changes = [
        (row.difference / row.clean, info.label, is_significant(row))
        for info in scored(shifts)
        if (row := _macro(shifts, info, "calls")) and known(row.difference) and row.clean
    ]
    if not changes:
        return []
    (low, lowest, _), (high, highest, _) = min(changes), max(changes)
    return [
        f"The number of calls changes significantly under {sum(change[2] for change in changes)} of "
        f"{pluralize(len(changes), 'shift', 'shifts')}: from {100 * low:+z.1f} % ({lowest}) to {100 * high:+z.1f} % "
        f"({highest})."
    ]


def means(shifts: Shifts) -> Table:
    """The means over all findings, a row per shift."""
    errors: tuple[Metric, ...] = ("brier", "ece")
    content = []
    for info in scored(shifts):
        ap, positive = _macro(shifts, info, "ap"), _macro(shifts, info, "calls")
        content.append(
            [
                info.label,
                number(ap.value if ap else None),
                _change(ap),
                p_value(ap.p_holm if ap else None),
                _change(_macro(shifts, info, "auroc")),
                *(_signed(_macro(shifts, info, metric)) for metric in errors),
                _counts(positive),
            ]
        )
    return Table(
        "Means over the findings on changed images, and their differences to the unchanged images",
        (
            "Shift", "AP", "Difference in AP", "p", "Difference in AUROC",
            *(f"Difference in {LABELS[metric]}" for metric in errors), "Calls",
        ),
        "lrrrrrrr",
        content,
        sortable=True,
    )  # fmt: skip


def by_finding(shifts: Shifts, findings: Sequence[str]) -> Table:
    """The numbers of the heat map."""
    infos = scored(shifts)
    content: list[list[str | Cell]] = []
    for level, name in lines_of(shifts, findings):
        rows = [shifts.row(info.name, level, name, "ap") for info in infos]
        clean = next((row.clean for row in rows if row is not None), None)
        changes = [
            number(None) if row is None or row.difference is None else signed(row.difference) for row in rows
        ]
        content.append([label_of(level, name), number(clean), *changes])
    return Table(
        "Difference in AP by shift",
        ("Finding", "AP, unchanged", *(info.label for info in infos)),
        "lr" + "r" * len(infos),
        content,
    )


def calls(shifts: Shifts, findings: Sequence[str]) -> Table:
    """Positive calls by finding and shift."""
    infos = scored(shifts)
    content: list[list[str | Cell]] = []
    for level, name in lines_of(shifts, findings):
        rows = [shifts.row(info.name, level, name, "calls") for info in infos]
        clean = next((row.clean for row in rows if row is not None), None)
        content.append(
            [label_of(level, name), _count(clean), *(_count(row.value if row else None) for row in rows)]
        )
    return Table(
        "Calls (images at or above the threshold) by shift",
        ("Finding", "Unchanged", *(info.label for info in infos)),
        "lr" + "r" * len(infos),
        content,
    )


def flip_table(flip: Flip, findings: Sequence[str]) -> Table:
    """The flip audit: all findings, the tiers, every finding."""
    order = {name: number for number, name in enumerate(findings)}
    rows = sorted(flip.rows, key=lambda row: order[row.name] if row.level == "finding" else -1)
    return Table(
        "Left and right exchanged",
        (
            "Finding", "Mean change of the logit", "Mean change of the score", "Changed calls", "Interval",
            "Rank correlation",
        ),
        "lrrrrr",
        [
            [
                label_of(row.level, row.name),
                number(row.logit),
                number(row.probability),
                percent(row.changed_calls),
                _shares(row.low, row.high),
                number(row.rank_correlation),
            ]
            for row in rows
        ],
    )  # fmt: skip


def _macro(shifts: Shifts, info: ShiftInfo, metric: Metric) -> ShiftRow | None:
    return shifts.row(info.name, "macro", "macro", metric)


def _change(row: ShiftRow | None) -> str:
    return difference(row.difference, row.low, row.high) if row else number(None)


def _signed(row: ShiftRow | None) -> str:
    return signed(row.difference) if row and known(row.difference) else number(None)


def _count(value: float | None) -> str:
    return f"{value:,.0f}" if known(value) else number(None)


def _counts(row: ShiftRow | None) -> str:
    return f"{_count(row.clean)} → {_count(row.value)}" if row and known(row.value) else number(None)


def _shares(low: float | None, high: float | None) -> str:
    """The interval of a share, in percent."""
    return f"{percent(low)} to {percent(high)}" if known(low) and known(high) else interval(low, high)
