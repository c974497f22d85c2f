"""The paired differences of the study, and differences.csv."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from benchmarks.study.arms import Study
from benchmarks.study.groups import (
    BASELINES,
    BCE,
    CHANGE,
    COMP_SUM,
    GROUPS,
    RAL,
    REFERENCE,
    base_of,
    members,
)
from benchmarks.study.statistics import LEVELS, RANKED, SELECTION_AP, Arm, Bootstrap, Difference, corrected
from ral.files import atomic_write

FINDINGS = "findings"
Compared = Mapping[str, tuple[str, ...]]
# Metric -> levels at which arms are compared; `FINDINGS` stands for each finding.
ALL_LEVELS: Compared = {
    **dict.fromkeys(RANKED, (*LEVELS, FINDINGS)),
    **dict.fromkeys(("f1", "brier", SELECTION_AP), ("macro",)),
}
MEANS: Compared = dict.fromkeys(RANKED, LEVELS)
# With AP on the selection set, by which it is decided whether more epochs are kept.
MEANS_AND_SELECTION: Compared = {**MEANS, SELECTION_AP: ("macro",)}

# Tables of differences beside those of the groups.
EXTRA, HEADLINE, SECOND_PHASE, EPOCHS = "extra", "headline", "second_phase", "epochs"
# Arms of the stage epochs, in the order in which they are compared.
LONGER = (RAL, BCE, REFERENCE, COMP_SUM)
# The second phase that all are compared with, beside the network's own classifier.
CRT = "crt"

Key = tuple[str, str, str, str, str]


@dataclass(frozen=True)
class Statement:
    """One of the three comparisons that the study was made for."""

    title: str
    arm: Arm | None
    """None if it has not run on every fold."""
    baseline: Arm | None


@dataclass(frozen=True)
class Comparisons:
    """All paired differences, Holm-corrected within their table, metric and level."""

    statements: list[Statement]
    by_key: dict[Key, Difference]
    """By table, arm, baseline, metric and level, in the order of differences.csv."""

    def pairs(self) -> list[tuple[str, Arm, Arm]]:
        """Title, arm and baseline of the statements that could be made, without one that mirrors another."""
        found: dict[frozenset[str], tuple[str, Arm, Arm]] = {}
        for one in self.statements:
            if one.arm and one.baseline:
                found.setdefault(
                    frozenset((one.arm.name, one.baseline.name)), (one.title, one.arm, one.baseline)
                )
        return list(found.values())

    def find(self, table: str, arm: str, baseline: str, metric: str, level: str) -> Difference | None:
        """A difference, or None if it was not computed."""
        return self.by_key.get((table, arm, baseline, metric, level))


def compare(study: Study) -> Comparisons:
    """Compute all differences."""
    made = statements(study)
    pairs = [(HEADLINE, one.arm, one.baseline, ALL_LEVELS) for one in made if one.arm and one.baseline]
    for group in GROUPS:
        for name in members(group, study.main):
            pairs += [(group.name, *pair, ALL_LEVELS) for pair in _with(study.main, name, BASELINES)]
    for name, arm in study.extra.items():
        if base := study.main.get(base_of(name)):
            pairs.append((EXTRA, arm, base, ALL_LEVELS))
    for ratio, arms in study.thin.items():
        pairs += [(thin_table(ratio), *pair, MEANS) for name in arms for pair in _with(arms, name, (BCE,))]
    for arm in study.second_phase.values():
        for baseline in second_phase_baselines(study, arm):
            pairs.append((SECOND_PHASE, arm, baseline, MEANS))
    pairs += [(EPOCHS, *pair, MEANS_AND_SELECTION) for pair in epoch_pairs(study)]
    for settings, arms in (study.others | study.seeds).items():
        pairs += [(settings, *pair, MEANS) for name in arms for pair in _with(arms, name, (BCE,))]
    differences = [one for pair in pairs for one in _differences(study.bootstrap, *pair)]
    return Comparisons(
        made,
        {(one.table, one.arm, one.baseline, one.metric, one.level): one for one in corrected(differences)},
    )


def statements(study: Study) -> list[Statement]:
    """RAL against the reference recipe and against BCE, and the best other recipe against RAL."""
    complete = study.complete()
    ral, best = complete.get(RAL), study.best(without=(RAL,))
    return [
        Statement("Default (RAL) − reference recipe", ral, complete.get(REFERENCE)),
        Statement("RAL − BCE", ral, complete.get(BCE)),
        Statement("Best other recipe − RAL", best, ral),
    ]


def second_phase_baselines(study: Study, arm: Arm) -> list[Arm]:
    """The network with its own classifier and with cRT, as far as they ran."""
    network = base_of(arm.name)
    found = [study.main.get(network), study.second_phase.get(f"{network}{CHANGE}{CRT}")]
    return [one for one in found if one and one.name != arm.name]


def epoch_pairs(study: Study) -> Iterator[tuple[Arm, Arm]]:
    """Arms of the stage epochs with each other; the same arms with fewer epochs, on the same folds; and each arm with
    itself with fewer.
    """
    for count, arms in study.epochs.items():
        longer = {name: replace(arm, name=with_epochs(name, count)) for name, arm in arms.items()}
        for name, baseline in ordered(arms):
            yield longer[name], longer[baseline]
            if name in study.main and baseline in study.main:
                folds = [fold for fold in arms[name].folds if fold in arms[baseline].folds]
                yield on_folds(study.main[name], folds), on_folds(study.main[baseline], folds)
        for name, arm in longer.items():
            if name in study.main:
                yield arm, study.main[name]


def ordered(arms: Mapping[str, Arm]) -> Iterator[tuple[str, str]]:
    """Every pair of arms of the stage epochs."""
    return itertools.combinations([name for name in LONGER if name in arms], 2)


def with_epochs(arm: str, epochs: int) -> str:
    """Name of an arm of the stage epochs."""
    return f"{arm}{CHANGE}{epochs} epochs"


def on_folds(arm: Arm, folds: Sequence[int]) -> Arm:
    """An arm without its other folds."""
    return replace(arm, scores={fold: arm.scores[fold] for fold in folds if fold in arm.scores})


def thin_table(ratio: float) -> str:
    """Table of the differences at an imbalance ratio."""
    return f"thin {ratio:g}"


def write(differences: Comparisons, path: Path) -> None:
    """Write differences.csv, numbers with six significant digits."""
    rows = [
        {
            "table": one.table, "arm": one.arm, "baseline": one.baseline, "metric": one.metric, "level": one.level,
            "folds": one.folds, "findings": one.findings, "difference": one.value, "low": one.low,
            "high": one.high, "p": one.p, "p_holm": one.p_holm, "standard_error": one.standard_error,
            "detectable": one.detectable,
        }
        for one in differences.by_key.values()
    ]  # fmt: skip
    with atomic_write(path) as draft:
        pd.DataFrame(rows).to_csv(draft, index=False, float_format="%.6g", lineterminator="\n")


def _with(arms: Mapping[str, Arm], name: str, baselines: tuple[str, ...]) -> Iterator[tuple[Arm, Arm]]:
    """An arm with each baseline that ran and is another arm."""
    for baseline in baselines:
        if baseline != name and baseline in arms:
            yield arms[name], arms[baseline]


def _differences(
    bootstrap: Bootstrap, table: str, arm: Arm, baseline: Arm, compared: Compared
) -> Iterator[Difference]:
    """The differences of two arms on the folds that both have."""
    folds = [fold for fold in arm.folds if fold in baseline.folds]
    for metric, levels in compared.items():
        for level in levels if folds else ():
            for name in bootstrap.data.findings if level == FINDINGS else (level,):
                one = bootstrap.difference(table, (arm, baseline), metric, name, folds)
                if one:
                    yield one
