"""The tables of RESULTS.md, as lists of cells."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from benchmarks.study.arms import Study
from benchmarks.study.comparisons import EXTRA, Comparisons, thin_table
from benchmarks.study.groups import BASELINES, BCE, GROUPS, RAL, Group, base_of, label, members
from benchmarks.study.statistics import SELECTION_AP, Arm, Bootstrap, Difference
from ral.evaluation.results import NO_INTERVAL, Interval
from ral.labels import TIERS
from ral.wording import difference, escape, known, number, p_value

NONE = "–"
STAGES = {
    "rate": "learning rates", "main": "arms", "extra": "changes to an arm", "thin": "thinned training sets",
    "control": "negative control", "second_phase": "second phase", "epochs": "more epochs",
    "seeds": "backbones and seeds",
}  # fmt: skip


@dataclass(frozen=True)
class Table:
    """A table; the first column is text, the others are numbers."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> list[str]:
        """Its lines."""
        rule = ["---", *["---:"] * (len(self.header) - 1)]
        return [f"| {' | '.join(row)} |" for row in (self.header, rule, *self.rows)]


def fold_sets(arms: Mapping[str, Arm], names: Iterable[str]) -> dict[tuple[int, ...], list[str]]:
    """Folds -> the arms that ran on exactly these, the most folds first."""
    sets: dict[tuple[int, ...], list[str]] = {}
    for name in names:
        sets.setdefault(arms[name].folds, []).append(name)
    return dict(sorted(sets.items(), key=lambda item: (-len(item[0]), item[0])))


def with_baselines(arms: Mapping[str, Arm], names: Sequence[str], folds: Sequence[int]) -> list[str]:
    """The baselines that ran on the same folds and are not among the arms, then the arms."""
    others = [
        one for one in BASELINES if one in arms and one not in names and set(folds) <= {*arms[one].folds}
    ]
    return [*others, *names]


def interval(bootstrap: Bootstrap, arm: Arm, metric: str, level: str, folds: Sequence[int]) -> Interval:
    """A metric of an arm with its interval."""
    sampled = bootstrap.mean(arm, metric, level, folds)
    return bootstrap.resamples.interval(sampled) if sampled else NO_INTERVAL


def metrics(bootstrap: Bootstrap, arms: Sequence[Arm], folds: Sequence[int]) -> Table:
    """Arms by metric, with intervals, and chance in the last row.

    Args:
        bootstrap: of the study.
        arms: in the order of the rows.
        folds: folds that all of them have.
    """
    columns = [
        ("ap", "macro"),
        ("auroc", "macro"),
        *(("ap", tier) for tier in TIERS),
        ("f1", "macro"),
        ("brier", "macro"),
    ]
    header = [
        "arm",
        "selection macro AP",
        "macro AP",
        "macro AUROC",
        *(f"{tier} AP" for tier in TIERS),
        "F1",
        "Brier",
    ]
    rows = []
    for arm in arms:
        values = [interval(bootstrap, arm, metric, level, folds) for metric, level in columns]
        rows.append([name_of(arm.name), number(arm.selection(folds)), *(value.text() for value in values)])
    chance = [number(bootstrap.chance(level, folds)[1]) for level in ("macro", *TIERS)]
    rows.append(["*random order*", NONE, chance[0], "0.500", *chance[1:], NONE, NONE])
    return Table(header, rows)


def differences(comparisons: Comparisons, table: str, names: Sequence[str], metric: str, level: str) -> Table:
    """Paired differences of arms to each baseline.

    Args:
        comparisons: all differences.
        table: name of the differences' table.
        names: the arms.
        metric: compared metric.
        level: macro or a tier.
    """
    rows = [
        [
            name_of(name),
            *(with_p(comparisons.find(table, name, baseline, metric, level)) for baseline in BASELINES),
        ]
        for name in names
    ]
    return Table(["arm", *(f"− {label(name)}" for name in BASELINES)], rows)


def has_intervals(
    comparisons: Comparisons, table: str, names: Sequence[str], metric: str, level: str
) -> bool:
    """Whether a difference of these arms to a baseline has an interval; with few positives none has."""
    found = (
        comparisons.find(table, name, baseline, metric, level) for name in names for baseline in BASELINES
    )
    return any(one is not None and known(one.low) for one in found)


def learning_rates(study: Study) -> Table:
    """Macro AP on the selection set at each learning rate, the chosen one bold; and the scale of the loss."""
    values = sorted({rate for one in study.rates for rate in one.tried})
    rows = []
    for one in study.rates:
        cells = [number(one.tried[rate]) if rate in one.tried else NONE for rate in values]
        if one.arm in study.main:
            cells[values.index(one.best)] = f"**{cells[values.index(one.best)]}**"
        scale = study.scales.get(one.arm)
        rows.append([name_of(one.arm), *cells, NONE if scale is None else f"{scale:.3g}"])
    return Table(["arm", *(f"{rate:g}" for rate in values), "scale of the loss"], rows)


def findings(study: Study, comparisons: Comparisons, table: str) -> Table:
    """AP of each finding with BCE and with RAL, and the paired difference, the most frequent finding first."""
    bootstrap = study.bootstrap
    data = bootstrap.data
    folds = [fold for fold in study.main[RAL].folds if fold in study.main[BCE].folds]
    rows = []
    for name in sorted(data.findings, key=lambda one: -data.positives[one]):
        values = [interval(bootstrap, study.main[arm], "ap", name, folds).text() for arm in (BCE, RAL)]
        gap = comparisons.find(table, RAL, BCE, "ap", name)
        rows.append([escape(name), data.tiers[name], f"{data.positives[name]:,}", *values, with_p(gap)])
    return Table(["finding", "tier", "positive images", "AP, BCE", "AP, RAL", "RAL − BCE"], rows)


def extras(study: Study, comparisons: Comparisons) -> Table:
    """Each change to an arm: paired differences to the arm, on the selection set and in test."""
    shown = ((SELECTION_AP, "macro"), ("ap", "macro"), ("ap", "tail"), ("auroc", "macro"), ("f1", "macro"))
    rows = []
    for name, arm in study.extra.items():
        gaps = [comparisons.find(EXTRA, name, base_of(name), metric, level) for metric, level in shown]
        rows.append([name_of(name), ", ".join(map(str, arm.folds)), *map(with_p, gaps)])
    header = ["change", "folds", "selection macro AP", "macro AP", "tail AP", "macro AUROC", "F1"]
    return Table(header, rows)


def thinning(study: Study, comparisons: Comparisons) -> Table:
    """Macro and tail AP at each imbalance ratio and without thinning, and paired differences to BCE at that ratio."""
    names = {name for arms in study.thin.values() for name in arms}
    images = study.part("thin").groupby("thin")["train_images"].mean()
    parts = [
        (f"{ratio:g}", f"{images[ratio]:,.0f}", thin_table(ratio), arms) for ratio, arms in study.thin.items()
    ]
    plain = {name: arm for name, arm in study.main.items() if name in names}
    rows = []
    for title, count, table, arms in [*parts, ("not thinned", NONE, GROUPS[0].name, plain)]:
        for name, arm in arms.items():
            values = [
                interval(study.bootstrap, arm, "ap", level, arm.folds).text() for level in ("macro", "tail")
            ]
            gaps = [comparisons.find(table, name, BCE, "ap", level) for level in ("macro", "tail")]
            folds = ", ".join(map(str, arm.folds))
            rows.append([title, name_of(name), folds, count, *values, *map(with_p, gaps)])
    header = ["ratio", "arm", "folds", "training images", "macro AP", "tail AP"]
    return Table([*header, "macro AP − BCE", "tail AP − BCE"], rows)


def settings(study: Study, comparisons: Comparisons, arms_of: Mapping[str, Mapping[str, Arm]]) -> Table:
    """Arms by settings: mean and standard deviation over seeds, and the paired difference to BCE.

    Args:
        study: with the runs.
        comparisons: all differences.
        arms_of: settings -> arms.
    """
    rows = []
    for title, arms in arms_of.items():
        for name, arm in arms.items():
            values = [_by_seed(study.bootstrap, arm, metric, level) for metric, level in SETTINGS]
            gap = comparisons.find(title, name, BCE, "ap", "macro")
            folds = ", ".join(map(str, arm.folds))
            seeds = str(len(values[0])) if values[0] else "unequal"
            rows.append([escape(title), name_of(name), folds, seeds, *map(_spread, values), with_p(gap)])
    header = ["settings", "arm", "folds", "seeds", "macro AP", "macro AUROC", "tail AP", "macro AP − BCE"]
    return Table(header, rows)


SETTINGS = (("ap", "macro"), ("auroc", "macro"), ("ap", "tail"))


def stages(runs: pd.DataFrame) -> Table:
    """Runs, hardware and time by stage and device."""
    rows = []
    order = [name for name in STAGES if name in set(runs["stage"])]
    for stage in [*order, *(name for name in runs["stage"].unique() if name not in STAGES)]:
        for device, part in runs[runs["stage"] == stage].groupby("device", sort=True):
            rows.append(
                [
                    escape(STAGES.get(stage, stage)), str(len(part)), str(part["arm"].nunique()),
                    _list(part["fold"]), _list(part["seed"]), escape(str(device)),
                    f"{part['seconds'].sum() / 60:,.0f}", f"{part['seconds'].median():,.0f}",
                    f"{part['images_per_second'].median():,.0f}",
                ]
            )  # fmt: skip
    header = [
        "stage",
        "runs",
        "arms",
        "folds",
        "seeds",
        "device",
        "minutes",
        "median seconds",
        "median images/s",
    ]
    return Table(header, rows)


def speed(study: Study, names: Sequence[str]) -> Table:
    """Median seconds and images per second of the arms' runs, by device."""
    runs = pd.concat([study.part("rate"), study.part("main")])
    rows = []
    for name in names:
        for device, part in runs[runs["arm"] == name].groupby("device", sort=True):
            seconds, rate = part["seconds"].median(), part["images_per_second"].median()
            rows.append(
                [name_of(name), escape(str(device)), str(len(part)), f"{seconds:,.0f}", f"{rate:,.0f}"]
            )
    return Table(["arm", "device", "runs", "seconds", "images/s"], rows)


def detectable(comparisons: Comparisons, table: str, pairs: Sequence[tuple[str, str, str]]) -> Table:
    """Smallest detectable difference of some pairs: title, arm and baseline."""
    rows = []
    for title, arm, baseline in pairs:
        gaps = [
            comparisons.find(table, arm, baseline, metric, level)
            for metric, level in (("ap", "macro"), ("ap", "tail"), ("auroc", "macro"))
        ]
        if any(gaps):
            rows.append([title, *(number(gap.detectable) if gap else NONE for gap in gaps)])
    return Table(["comparison", "macro AP", "tail AP", "macro AUROC"], rows)


def all_arms(study: Study, groups: Iterable[Group]) -> list[str]:
    """The arms in the order of the groups."""
    return [name for group in groups for name in members(group, study.main)]


def name_of(arm: str) -> str:
    """Name of an arm in a cell."""
    return escape(label(arm))


def with_p(one: Difference | None) -> str:
    """A difference with its interval and Holm-corrected p value, or none where the positives are too few to test it."""
    if one is None:
        return NONE
    text = difference(one.value, one.low, one.high)
    return f"{text}, p {p_value(one.p_holm)}" if known(one.p_holm) else text


def _by_seed(bootstrap: Bootstrap, arm: Arm, metric: str, level: str) -> list[float]:
    """A metric of each seed, in the order of the runs; empty where a fold lacks a seed or no finding is estimable."""
    counts = {len(scores) for scores in arm.scores.values()}
    if len(counts) > 1:
        return []
    values = []
    for number_of_seed in range(counts.pop()):
        one = Arm(
            arm.name,
            {fold: [scores[number_of_seed]] for fold, scores in arm.scores.items()},
            arm.selection_ap,
        )
        sampled = bootstrap.mean(one, metric, level, arm.folds)
        values += [float(sampled.values[0])] if sampled else []
    return values


def _spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation."""
    if not len(values):
        return NONE
    return f"{np.mean(values):.3f}" + (f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else "")


def _list(values: "pd.Series[int]") -> str:
    """Distinct numbers, in order."""
    return ", ".join(str(value) for value in sorted(set(values)))
