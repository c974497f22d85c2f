"""All metrics of one finding in every resample; used by the evaluation and the audit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from ral.config.evaluate import RULES, Rule
from ral.evaluation.bootstrap import NO_SUPPORT, BootstrapDistribution, Resamples, Scale, Support
from ral.evaluation.exact import middle_tail
from ral.evaluation.metrics import LEVEL, divide, f1, rank, ranked
from ral.evaluation.reliability import errors
from ral.evaluation.specs import RANKING_METRICS
from ral.labels import patient_counts

Array = NDArray[Any]


@dataclass(frozen=True)
class Scored:
    """Labels, logits and calibrated scores of one finding on the scored rows."""

    labels: Array
    """1, 0 or NaN [rows]."""
    logits: Array
    """Raw logits [rows]."""
    scores: Array | None
    """Calibrated scores [rows]; None if the finding could not be calibrated."""
    thresholds: Mapping[Rule, float]
    """Threshold of the calibrated scores for each rule; empty if there is none."""

    def rows(self, chosen: Array) -> "Scored":
        """The same finding, restricted to some rows."""
        scores = None if self.scores is None else self.scores[chosen]
        return replace(self, labels=self.labels[chosen], logits=self.logits[chosen], scores=scores)

    def known(self) -> Array:
        """Mask of the rows with a known label, bool [rows]."""
        return ~np.isnan(self.labels)


def ranking(
    scored: Scored, resamples: Resamples, names: tuple[str, ...] = RANKING_METRICS
) -> dict[str, BootstrapDistribution]:
    """AUROC, AP and the two operating points, from the raw logits."""
    support = resamples.support(scored.labels)
    values = ranked(
        rank(scored.logits, scored.labels, resamples.patient, resamples.patients), resamples.weights, names
    )
    sampled = {name: BootstrapDistribution(array, support) for name, array in values.items()}
    if "auroc" in sampled:
        sampled["auroc"] = replace(sampled["auroc"], scale="auroc")
    if "ap" in sampled:
        # Each positive contributes to the precision at its own rank, so AP is biased upwards with few positives.
        sampled["ap"] = replace(sampled["ap"], inflation=max(resamples.bias(values["ap"]), 0.0))
    if AT_SENSITIVITY in sampled and np.isfinite(values[AT_SENSITIVITY][0]):
        sampled[AT_SENSITIVITY] = _at_sensitivity(scored, resamples, sampled[AT_SENSITIVITY])
    return sampled


AT_SENSITIVITY = "specificity_at_90_sensitivity"


def _at_sensitivity(
    scored: Scored, resamples: Resamples, sampled: BootstrapDistribution
) -> BootstrapDistribution:
    """The specificity at 90 % sensitivity, with an interval from the uncertainty of its threshold instead of
    replicates.

    The threshold is a quantile of few positive scores, about which replicates contain almost no information. The
    plausible thresholds are those whose observed sensitivity is compatible with 90 % (binomial test with mid-P); the
    interval covers the specificity at all of them, plus the variation of the specificity at a fixed threshold.
    """
    positive, negative = scored.labels == 1, scored.labels == 0
    positive_logits, negative_logits = np.sort(scored.logits[positive]), np.sort(scored.logits[negative])
    steps = np.unique(positive_logits)[::-1]
    sensitivities = 1 - np.searchsorted(positive_logits, steps) / len(positive_logits)
    threshold = steps[np.argmax(sensitivities >= LEVEL - 1e-12)]
    predicted = scored.logits >= threshold
    cells = [positive, positive & predicted, negative, negative & ~predicted]
    p, tp, n, tn = resamples.totals(np.stack(cells, axis=1)).T
    trials = resamples.trials(divide(tp, p, p > 0), Support.of(resamples.counts(positive)))
    tail = (1 - resamples.confidence) / 2
    mid_p = middle_tail(sensitivities, trials, LEVEL)
    plausible = np.flatnonzero((mid_p >= tail) & (mid_p <= 1 - tail))
    value = float(sampled.values[0])
    low = high = value
    if len(plausible):
        high = np.searchsorted(negative_logits, steps[plausible[0]]) / len(negative_logits)
        after = plausible[-1] + 1
        low = (
            np.searchsorted(negative_logits, steps[after], side="right") / len(negative_logits)
            if after < len(steps)
            else 0.0
        )
    drawn = divide(tn, n, n > 0)[1 : 1 + resamples.replicates]
    spread = -ndtri(tail) * float(np.nanstd(drawn)) if np.isfinite(drawn).any() else 0.0
    unseen = (float(np.hypot(max(value - low, 0.0), spread)), float(np.hypot(max(high - value, 0.0), spread)))
    return replace(sampled, values=np.full_like(sampled.values, value), unseen=unseen)


def metrics_at_threshold(
    scored: Scored, resamples: Resamples
) -> dict[Rule, dict[str, BootstrapDistribution]]:
    """The metrics `specs.THRESHOLD_METRICS` and tp, fp, fn, tn at the threshold of each rule; empty without thresholds.

    A metric is NaN if its denominator is 0, F1 without positives. The sample size of a metric is that of its
    denominator, for PPV the images that are predicted positive.
    """
    return pooled_metrics_at_threshold([scored], resamples) if scored.thresholds else {}


def pooled_metrics_at_threshold(
    several: Sequence[Scored], resamples: Resamples
) -> dict[Rule, dict[str, BootstrapDistribution]]:
    """The same metrics for the pooled predictions of several findings, each at its own thresholds; of the rules for
    which all of them have one (models of earlier versions lack `prevalence`).

    Args:
        several: findings with thresholds, on the same rows.
        resamples: of those rows.
    """
    rules = [rule for rule in RULES if all(rule in one.thresholds for one in several)]
    return {rule: _at([(one, one.thresholds[rule]) for one in several], resamples) for rule in rules}


def f1_at(scored: Scored, resamples: Resamples, threshold: float) -> BootstrapDistribution:
    """F1 at a given threshold of the calibrated scores."""
    return _at([(scored, threshold)], resamples)["f1"]


def _at(several: Sequence[tuple[Scored, float]], resamples: Resamples) -> dict[str, BootstrapDistribution]:
    """The metrics `specs.THRESHOLD_METRICS` and the counts for findings with one threshold each."""
    sums = np.zeros((4, resamples.weights.shape[1]))
    # Images of each patient in the denominator of each metric, summed over the findings.
    denominators = {name: np.zeros(resamples.patients) for name in DENOMINATORS}
    for scored, threshold in several:
        assert scored.scores is not None
        positive, negative, predicted = scored.labels == 1, scored.labels == 0, scored.scores >= threshold
        cells = [positive & predicted, negative & predicted, positive & ~predicted, negative & ~predicted]
        sums += resamples.totals(np.stack(cells, axis=1)).T
        for name, members in DENOMINATORS.items():
            denominators[name] += resamples.counts(
                np.logical_or.reduce([cells[CELLS.index(cell)] for cell in members])
            )
    tp, fp, fn, tn = sums
    values = {
        "sensitivity": divide(tp, tp + fn, tp + fn > 0),
        "specificity": divide(tn, tn + fp, tn + fp > 0),
        "ppv": divide(tp, tp + fp, tp + fp > 0),
        "npv": divide(tn, tn + fn, tn + fn > 0),
        "f1": f1(tp, fp, tp + fn),
    }
    scale: dict[str, Scale] = {"f1": "f1"}
    metrics = {
        name: BootstrapDistribution(value, Support.of(denominators[name]), scale.get(name, "share"))
        for name, value in values.items()
    }
    return metrics | {
        name: BootstrapDistribution(value, NO_SUPPORT, "free")
        for name, value in zip(CELLS, sums, strict=True)
    }


CELLS = ("tp", "fp", "fn", "tn")
# Cells in the denominator of each metric.
DENOMINATORS = {
    "sensitivity": ("tp", "fn"),
    "specificity": ("tn", "fp"),
    "ppv": ("tp", "fp"),
    "npv": ("tn", "fn"),
    "f1": ("tp", "fp", "fn"),
}


def calibration(
    scored: Scored, resamples: Resamples, bins: int, raw: bool = False
) -> dict[str, BootstrapDistribution]:
    """The metrics `specs.CALIBRATION_METRICS` of the calibrated scores; empty if there are none.

    With `raw`, of the sigmoid of the raw logits (not a probability), to show the effect of the calibration.
    """
    if scored.scores is None:
        return {}
    scores = sigmoid(scored.logits) if raw else scored.scores
    return errors(scores, scored.labels, resamples, bins)


def too_few(scored: Scored, patient: Array, minimum: int, split: str = "test") -> str | None:
    """Why a finding is not estimable on these rows; None if it is.

    Args:
        scored: the finding.
        patient: index of each row's patient [rows].
        minimum: required number of patients with a positive image, and of patients with a negative image.
        split: split of the images, for the message.
    """
    reasons = []
    for count, kind in zip(patient_counts(scored.labels, patient), ("positive", "negative"), strict=True):
        if count < minimum:
            patients = "patient" if count == 1 else "patients"
            reasons.append(f"{count} {patients} with {kind} {split} images, at least {minimum} needed")
    return "; ".join(reasons) or None


def sigmoid(logits: Array) -> Array:
    """Sigmoid of the raw logits; not a probability, especially with losses such as RAL."""
    return np.asarray(0.5 * (1 + np.tanh(logits / 2)))
