"""A section of RESULTS.md: the audit of a network of real images, from the tables of the step robustness."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.study.tables import Table
from ral.labels import TIERS
from ral.wording import difference, escape, p_value, percent, signed, with_interval

Row = Mapping[str, str]

FILES = SHIFTS, FLIPS, PROBES, WITHIN, ATTACKS, GAPS = tuple(
    f"robustness{part}.csv" for part in ("", "_flip", "_probes", "_within", "_attacks", "_gaps")
)
ATTACKED = (*((level, "ap") for level in ("macro", *TIERS)), ("macro", "auroc"))


def audit(results: Path) -> list[str]:
    """The tables of shifts, of left and right exchanged, of shortcut probes and of attacks.

    Args:
        results: folder of the files; without them, the section says that the step was not run.
    """
    if not all((results / name).is_file() for name in FILES):
        return ["Not run."]
    return [
        "A network of its own on the test images of a stratified split: "
        "[robustness.md](robustness.md#audit-of-real-images) says how it was trained, and what the tables show. "
        "Intervals are 95 %.",
        "",
        "AP is the mean over the findings on the changed images; the columns head to ECE are differences to the "
        "unchanged images, except in the first row; calls are positive decisions over all findings.",
        "",
        *shifts(_rows(results / SHIFTS)).markdown(),
        "",
        "Left and right exchanged:",
        "",
        *flips(_rows(results / FLIPS)).markdown(),
        "",
        "Shortcut probes. Within pairs: the findings' macro AUROC among pairs of images with the same value, minus "
        "that of all pairs; once per attribute.",
        "",
        *probes(_rows(results / PROBES), _rows(results / WITHIN)).markdown(),
        "",
        "Attacks on the test images; AP and AUROC, unchanged and attacked:",
        "",
        *attacks(_rows(results / ATTACKS), _rows(results / GAPS)).markdown(),
    ]


def shifts(rows: Sequence[Row]) -> Table:
    """A row of the unchanged images, and one per shift."""
    of = {(row["shift"], row["name"], row["metric"]): row for row in rows}
    names = list(dict.fromkeys(row["shift"] for row in rows))
    clean = {
        metric: _float(of[names[0], "macro", metric], "clean")
        for metric in ("ap", "auroc", "brier", "ece", "calls")
    }
    cells = [
        ["none", f"{clean['ap']:.3f}", *[""] * 5,
         *(f"{clean[metric]:.3f}" for metric in ("auroc", "brier", "ece")), f"{clean['calls']:,.0f}"]
    ]  # fmt: skip
    for shift in names:
        ap = of[shift, "macro", "ap"]
        cells.append(
            [f"`{shift}`", f"{_float(ap, 'value'):.3f}", _gap(ap), p_value(_float(ap, "p_holm")),
             *(signed(_float(of[shift, tier, "ap"], "difference")) for tier in TIERS),
             *(signed(_float(of[shift, "macro", metric], "difference")) for metric in ("auroc", "brier", "ece")),
             f"{_float(of[shift, 'macro', 'calls'], 'value'):,.0f}"]
        )  # fmt: skip
    header = ("shift", "AP", "difference", "p (Holm)", *TIERS, "AUROC", "Brier score", "ECE", "calls")
    return Table(header, cells)


def flips(rows: Sequence[Row]) -> Table:
    """A row for all findings, and one per tier and finding."""
    names = {"macro": "all findings", "tier": "tier {}", "finding": "{}"}
    cells = [
        [
            names[row["level"]].format(escape(row["name"])),
            f"{_float(row, 'logit'):.3f}",
            f"{percent(_float(row, 'changed_calls'))} "
            f"({percent(_float(row, 'low'))} to {percent(_float(row, 'high'))})",
            f"{_float(row, 'rank_correlation'):.3f}",
        ]
        for row in rows
    ]
    return Table(("finding", "mean change of the logit", "changed calls", "rank correlation"), cells)


def probes(rows: Sequence[Row], within: Sequence[Row]) -> Table:
    """A row per attribute and value."""
    macro = {row["attribute"]: row for row in within if row["finding"] == "macro"}
    cells = []
    for number, row in enumerate(rows):
        first = number == 0 or row["attribute"] != rows[number - 1]["attribute"]
        pairs = macro[row["attribute"]]
        cells.append(
            [
                row["attribute"],
                escape(f"{row['value']} or {row['others']}" if row["others"] else row["value"]),
                f"{int(row['images']):,}",
                with_interval(_float(row, "auroc"), _float(row, "low"), _float(row, "high")),
                _gap(pairs) if first else "",
                p_value(_float(pairs, "p_holm")) if first else "",
            ]
        )
    header = (
        "attribute",
        "value",
        "images",
        "AUROC of the probe",
        "within pairs: change of macro AUROC",
        "p (Holm)",
    )
    return Table(header, cells)


def attacks(rows: Sequence[Row], gaps: Sequence[Row]) -> Table:
    """A row per attack and strength, with the gap between the AP of head and tail."""
    gap_of = {row["attack"]: row for row in gaps}
    of = {(row["shift"], row["name"], row["metric"]): row for row in rows}
    cells = []
    for attack in dict.fromkeys(row["shift"] for row in rows):
        target, _, eps = attack.partition("_")
        attacked = [*(of[attack, name, metric] for name, metric in ATTACKED), gap_of[attack]]
        cells.append(
            ["each finding alone" if target == "finding" else "all findings at once", eps,
             *(f"{_float(row, 'clean'):.3f} to {_float(row, 'value'):.3f}: {_gap(row)}" for row in attacked)]
        )  # fmt: skip
    header = (
        "attack",
        "gray levels",
        "macro AP",
        *(f"{tier} AP" for tier in TIERS),
        "macro AUROC",
        "head − tail AP",
    )
    return Table(header, cells)


def _rows(path: Path) -> list[Row]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def _float(row: Row, column: str) -> float:
    """A number; NaN where the table has none."""
    return float(row[column] or "nan")


def _gap(row: Row) -> str:
    return difference(_float(row, "difference"), _float(row, "low"), _float(row, "high"))
