"""Metrics of the study's runs with intervals, and paired differences of arms.

AP, AUROC, F1 and Brier score are computed within each fold and then averaged over the folds: logits of different
trainings have different scales and are never pooled. The bootstrap resamples patients within their fold, and all arms
are evaluated on the same resamples.

AP is biased upwards with few positives, in a test fold and once more in its resamples. An interval is that of the mean
over test folds of this size, not of an infinite population: the replicates of each metric are shifted so that their
mean is the value of the sample.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from benchmarks.study.inputs import SELECTION, Logits, StudyData
from ral.config.evaluate import EvaluateConfig
from ral.errors import UserError
from ral.evaluation import thresholds
from ral.evaluation.bootstrap import (
    BootstrapDistribution,
    Resamples,
    Support,
    draw,
    holm,
)
from ral.evaluation.calibration import calibrate
from ral.evaluation.metrics import divide
from ral.evaluation.resampled_metrics import Scored, f1_at, ranking
from ral.labels import TIERS

Array = NDArray[Any]

RANKED = ("ap", "auroc")
# AP on the selection set instead of the fold's test images.
SELECTION_AP = "selection_ap"
LEVELS = ("macro", *TIERS)
# Power of the smallest difference that is reported as detectable, at a two-sided level of 5 %.
POWER = 0.8
_DETECTABLE = float(ndtri(0.975) + ndtri(POWER))

# (metric, finding) -> its distribution on one fold's test images (`SELECTION_AP`: on the selection set); absent where
# it is not estimable.
RunScores = dict[tuple[str, str], BootstrapDistribution]


@dataclass(frozen=True)
class Arm:
    """All runs of one arm, or of one arm with a change."""

    name: str
    """As in runs.csv."""
    scores: dict[int, list[RunScores]]
    """Fold -> one entry per seed."""
    selection_ap: dict[int, float]
    """Fold -> macro AP on the selection set, mean over seeds. Choices are made by it, never by a test metric."""

    @property
    def folds(self) -> tuple[int, ...]:
        """The folds with a run, in order."""
        return tuple(sorted(self.scores))

    def selection(self, folds: Sequence[int]) -> float:
        """Macro AP on the selection set, mean over some folds."""
        return float(np.mean([self.selection_ap[fold] for fold in folds]))


@dataclass(frozen=True)
class Difference:
    """A paired difference of two arms."""

    table: str
    arm: str
    baseline: str
    metric: str
    level: str
    """macro, a tier or a finding."""
    folds: int
    findings: int
    """Number of averaged findings."""
    value: float
    low: float | None
    high: float | None
    p: float
    standard_error: float
    p_holm: float = float("nan")

    @property
    def detectable(self) -> float:
        """Smallest true difference that a sample of this size detects with a power of 80 %."""
        return _DETECTABLE * self.standard_error


class Bootstrap:
    """The resamples of the test patients, and all metrics computed on them."""

    def __init__(self, data: StudyData, config: EvaluateConfig, replicates: int) -> None:
        """Draw the resamples.

        Args:
            data: images of the study.
            config: seed and confidence of the bootstrap; calibration and threshold.
            replicates: number of resamples.
        """
        self.data = data
        self.config = config
        self.resamples = draw_within_folds(data, replicates, config.seed, config.confidence)
        fold = data.fold[data.fold != SELECTION]
        self.selection = draw(
            data.patients[data.rows(SELECTION)], replicates, config.seed, config.confidence, "percentile"
        )
        self.by_fold = {number: self.resamples.rows(fold == number) for number in data.folds}
        self.members: dict[str, tuple[str, ...]] = {
            "macro": data.findings,
            **{tier: tuple(name for name in data.findings if data.tiers[name] == tier) for tier in TIERS},
            **{name: (name,) for name in data.findings},
        }

    def score(self, logits: Logits, fold: int, calibrated: bool) -> RunScores:
        """All metrics of one run.

        A finding without a positive or without a negative test image in the fold has no metric there. F1 and Brier
        score need a calibration map, which is fitted on the selection set, as is the threshold of F1.

        Args:
            logits: of the run.
            fold: tested fold.
            calibrated: whether F1, Brier score and `SELECTION_AP` are needed.
        """
        data, resamples, rows = self.data, self.by_fold[fold], self.data.rows(fold)
        selection_rows = data.rows(SELECTION)
        known = data.targets[selection_rows]
        maps = (
            calibrate(
                logits.selection,
                known,
                data.patients[selection_rows],
                self.config.calibration,
                self.config.seed,
            )
            if calibrated
            else [None] * len(data.findings)
        )
        scores: RunScores = {}
        for column, (name, calibration) in enumerate(zip(data.findings, maps, strict=True)):
            labels = data.targets[rows, column]
            if not (np.any(labels == 1) and np.any(labels == 0)):
                continue
            scored = Scored(labels, logits.test[:, column], None, {})
            values = dict(ranking(scored, resamples, RANKED))
            if calibration is not None:
                selection = Scored(known[:, column], logits.selection[:, column], None, {})
                values[SELECTION_AP] = ranking(selection, self.selection, ("ap",))["ap"]
                scored = replace(scored, scores=calibration.apply(scored.logits))
                chosen = thresholds.choose(
                    calibration.apply(selection.logits), selection.labels, self.config.threshold
                )
                values["f1"] = f1_at(scored, resamples, chosen["max_f1"])
                values["brier"] = brier(scored, resamples)
            scores |= {(metric, name): recentred(one, resamples.replicates) for metric, one in values.items()}
        return scores

    def finding(self, arm: Arm, metric: str, name: str, folds: Sequence[int]) -> BootstrapDistribution | None:
        """A metric of one finding: the mean over the folds in which it is estimable, and over the seeds of each."""
        parts = []
        for fold in folds:
            seeds = [scores[metric, name] for scores in arm.scores[fold] if (metric, name) in scores]
            if seeds:
                parts.append(seeds[0] if len(seeds) == 1 else self.resamples.mean(seeds))
        if not parts:
            return None
        if metric == SELECTION_AP:  # the same patients in every fold
            return self.selection.mean(parts)
        support = [part.support for part in parts]
        # The patients of the folds differ, so their degrees of freedom add up.
        total = Support(
            sum(one.patients for one in support),
            sum(one.effective - 1 for one in support) + 1,
            sum(one.images for one in support),
        )
        return parts[0] if len(parts) == 1 else replace(self.resamples.mean(parts), support=total)

    def findings(
        self, arm: Arm, metric: str, level: str, folds: Sequence[int]
    ) -> list[BootstrapDistribution]:
        """A metric of each finding of a level (`members`), without those that are estimable in no fold."""
        values = (self.finding(arm, metric, name, folds) for name in self.members[level])
        return [value for value in values if value is not None]

    def mean(self, arm: Arm, metric: str, level: str, folds: Sequence[int]) -> BootstrapDistribution | None:
        """A metric at a level: the mean over its findings; None if none is estimable."""
        parts = self.findings(arm, metric, level, folds)
        return self.resamples.mean(parts) if len(parts) > 1 else next(iter(parts), None)

    def difference(
        self, table: str, arms: tuple[Arm, Arm], metric: str, level: str, folds: Sequence[int]
    ) -> Difference | None:
        """The paired difference of two arms on the same folds; None if no finding is estimable.

        Args:
            table: name of the table that it belongs to.
            arms: the arm and its baseline.
            metric: ap, auroc, f1, brier or `SELECTION_AP`.
            level: macro, a tier or a finding.
            folds: folds that both arms have.
        """
        first, second = (self.mean(arm, metric, level, folds) for arm in arms)
        if first is None or second is None:
            return None
        resamples = self.selection if metric == SELECTION_AP else self.resamples
        paired = resamples.difference(first, second)
        if np.array_equal(first.values, second.values):  # as if of one model: nothing is uncertain
            paired = replace(paired, unseen=(0.0, 0.0))
        gap = resamples.interval(paired)
        assert gap.value is not None
        drawn = resamples.drawn(paired)
        return Difference(
            table, arms[0].name, arms[1].name, metric, level, len(folds),
            len(self.findings(arms[0], metric, level, folds)), gap.value, gap.low, gap.high,
            resamples.p_value(paired), float(np.std(drawn)) if drawn.size else float("nan"),
        )  # fmt: skip

    def left_out(self, folds: Sequence[int]) -> list[tuple[str, int]]:
        """Findings without a metric in a fold, because it has no positive or no negative test image."""
        found = []
        for fold, (column, name) in itertools.product(folds, enumerate(self.data.findings)):
            labels = self.data.targets[self.data.rows(fold), column]
            if not (np.any(labels == 1) and np.any(labels == 0)):
                found.append((name, fold))
        return found

    def chance(self, level: str, folds: Sequence[int]) -> tuple[float, float]:
        """Prevalence at a level, and the expected AP of a random order, averaged as the metrics are."""
        missing = set(self.left_out(folds))
        values = []
        for name in self.members[level]:
            column = self.data.findings.index(name)
            labels = [
                self.data.targets[self.data.rows(fold), column]
                for fold in folds
                if (name, fold) not in missing
            ]
            if labels:
                values.append(np.mean([(np.nanmean(one), random_ap(one)) for one in labels], axis=0))
        prevalence, expected = np.mean(values, axis=0) if values else (np.nan, np.nan)
        return float(prevalence), float(expected)


def draw_within_folds(data: StudyData, replicates: int, seed: int, confidence: float) -> Resamples:
    """Resamples of all test patients: each fold's patients are drawn with replacement from that fold.

    Args:
        data: images of the study.
        replicates: number of resamples.
        seed: seed of the draw.
        confidence: coverage of the intervals.

    Raises:
        UserError: a fold has fewer than two patients.
    """
    rows = np.flatnonzero(data.fold != SELECTION)
    names, first, patient = np.unique(data.patients[rows], return_index=True, return_inverse=True)
    fold = data.fold[rows][first]
    weights = np.ones((len(names), 1 + replicates), dtype=np.uint16)
    for number in data.folds:
        members = np.flatnonzero(fold == number)
        if len(members) < 2:
            raise UserError(f"fold {number} has {len(members)} patient; a bootstrap needs at least 2.")
        generator = np.random.default_rng([seed, number])
        for column in range(1, 1 + replicates):
            drawn = generator.integers(len(members), size=len(members))
            weights[members, column] = np.bincount(drawn, minlength=len(members))
    return Resamples(patient, weights, replicates, confidence, "percentile")


def recentred(sampled: BootstrapDistribution, replicates: int) -> BootstrapDistribution:
    """The same metric with its replicates shifted so that their mean is the value of the sample."""
    values = sampled.values.copy()
    drawn = values[1 : 1 + replicates]
    finite = drawn[np.isfinite(drawn)]
    if finite.size and np.any(finite != values[0]):
        drawn += values[0] - finite.mean()
    return replace(sampled, values=values)


def brier(scored: Scored, resamples: Resamples) -> BootstrapDistribution:
    """Mean squared difference of calibrated score and label, over the rows with a known label."""
    assert scored.scores is not None
    known = scored.known()
    squared = np.where(known, (scored.scores - np.where(known, scored.labels, 0)) ** 2, 0)
    total, images = resamples.totals(np.stack([squared, known], axis=1)).T
    return BootstrapDistribution(divide(total, images, images > 0), resamples.support(scored.labels))


def random_ap(labels: Array) -> float:
    """Expected AP of a random order of images with these labels (1, 0 or NaN).

    With few positives it is above the prevalence.
    """
    images, positives = int((~np.isnan(labels)).sum()), int((labels == 1).sum())
    if images < 2:
        return float(positives)
    others = (positives - 1) / (images - 1)
    return float(others + (1 - others) * np.mean(1 / np.arange(1, images + 1)))


def corrected(differences: Iterable[Difference]) -> list[Difference]:
    """The same differences with Holm's correction over each table, metric and level.

    `a − b` and `b − a` are one test.
    """
    differences = list(differences)
    families: dict[tuple[str, str, str], dict[frozenset[str], float]] = {}
    for one in differences:
        family = families.setdefault((one.table, one.metric, one.level), {})
        family[frozenset((one.arm, one.baseline))] = one.p
    adjusted = {
        key: dict(zip(tests, holm(np.array(list(tests.values()))), strict=True))
        for key, tests in families.items()
    }
    return [
        replace(
            one,
            p_holm=float(adjusted[one.table, one.metric, one.level][frozenset((one.arm, one.baseline))]),
        )
        for one in differences
    ]
