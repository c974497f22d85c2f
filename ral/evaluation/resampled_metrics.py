"""Every metric of one finding on some rows, in every resample: what whole evaluation and audit have in common."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from ral.config.evaluate import RULES, Rule
from ral.evaluation.bootstrap import NO_SUPPORT, BootstrapDistribution, Resamples, Scale, Support
from ral.evaluation.exact import middle_tail
from ral.evaluation.metrics import LEVEL, RANKING_METRICS, divide, f1, rank, ranked
from ral.evaluation.reliability import errors

Array = NDArray[Any]

THRESHOLD_METRICS = ("sensitivity", "specificity", "ppv", "npv", "f1")


@dataclass(frozen=True)
class Scored:
    """One finding on the rows that are scored."""

    labels: Array
    """1, 0 or NaN [rows]."""
    logits: Array
    """Raw [rows]."""
    scores: Array | None
    """Calibrated [rows]; None if the finding could not be calibrated."""
    thresholds: Mapping[Rule, float]
    """Of each rule, on the calibrated scores; empty if there are none."""

    def rows(self, chosen: Array) -> "Scored":
        """The same finding on some of the rows."""
        scores = None if self.scores is None else self.scores[chosen]
        return replace(self, labels=self.labels[chosen], logits=self.logits[chosen], scores=scores)

    def known(self) -> Array:
        """Which rows have a label, bool [rows]."""
        return ~np.isnan(self.labels)


def ranking(
    scored: Scored, resamples: Resamples, names: tuple[str, ...] = RANKING_METRICS
) -> dict[str, BootstrapDistribution]:
    """AUROC, AP and the two operating points, from the raw logits."""
    support = resamples.support(scored.labels)
    found = ranked(
        rank(scored.logits, scored.labels, resamples.patient, resamples.patients), resamples.weights, names
    )
    sampled = {name: BootstrapDistribution(values, support) for name, values in found.items()}
    if "ap" in sampled:
        # Every positive is among those whose precision is read at it: of few, AP is too high.
        sampled["ap"] = replace(sampled["ap"], inflation=max(resamples.bias(found["ap"]), 0.0))
    if AT_SENSITIVITY in sampled and np.isfinite(found[AT_SENSITIVITY][0]):
        sampled[AT_SENSITIVITY] = _at_sensitivity(scored, resamples, sampled[AT_SENSITIVITY])
    return sampled


AT_SENSITIVITY = "specificity_at_90_sensitivity"


def _at_sensitivity(
    scored: Scored, resamples: Resamples, sampled: BootstrapDistribution
) -> BootstrapDistribution:
    """The specificity at 90 % sensitivity with the reach of its threshold, in the place of replicates.

    Its threshold is a quantile of few positive scores: replicates of ten know next to nothing about the lowest tenth.
    The thresholds that may have a sensitivity of 90 % are those at which the sensitivity found does not contradict it (a
    binomial test with mid-P); the specificity reaches as far as theirs, and as far as it varies at a threshold.
    """
    positive, negative = scored.labels == 1, scored.labels == 0
    hits, others = np.sort(scored.logits[positive]), np.sort(scored.logits[negative])
    steps = np.unique(hits)[::-1]
    found = 1 - np.searchsorted(hits, steps) / len(hits)
    threshold = steps[np.argmax(found >= LEVEL - 1e-12)]
    called = scored.logits >= threshold
    cells = [positive, positive & called, negative, negative & ~called]
    p, tp, n, tn = resamples.totals(np.stack(cells, axis=1)).T
    trials = resamples.trials(divide(tp, p, p > 0), Support.of(resamples.counts(positive)))
    tail = (1 - resamples.confidence) / 2
    may = middle_tail(found, trials, LEVEL)
    possible = np.flatnonzero((may >= tail) & (may <= 1 - tail))
    value = float(sampled.values[0])
    low = high = value
    if len(possible):
        high = np.searchsorted(others, steps[possible[0]]) / len(others)
        after = possible[-1] + 1
        low = np.searchsorted(others, steps[after], side="right") / len(others) if after < len(steps) else 0.0
    drawn = divide(tn, n, n > 0)[1 : 1 + resamples.replicates]
    spread = -ndtri(tail) * float(np.nanstd(drawn)) if np.isfinite(drawn).any() else 0.0
    reach = (float(np.hypot(max(value - low, 0.0), spread)), float(np.hypot(max(high - value, 0.0), spread)))
    return replace(sampled, values=np.full_like(sampled.values, value), unseen=reach)


def metrics_at_threshold(
    scored: Scored, resamples: Resamples
) -> dict[Rule, dict[str, BootstrapDistribution]]:
    """The figures of `THRESHOLD_METRICS` at the threshold of each rule, with `tp`, `fp`, `fn`, `tn`; empty without thresholds.

    Each is NaN where there is nothing to divide by, F1 without a positive. It is carried by the images of its own
    denominator: PPV by those that are called.
    """
    return pooled_metrics_at_threshold([scored], resamples) if scored.thresholds else {}


def pooled_metrics_at_threshold(
    several: Sequence[Scored], resamples: Resamples
) -> dict[Rule, dict[str, BootstrapDistribution]]:
    """The same of the calls of several findings together, each at its own thresholds.

    Args:
        several: findings with thresholds, on the same rows.
        resamples: of those rows.
    """
    return {rule: _at([(one, one.thresholds[rule]) for one in several], resamples) for rule in RULES}


def f1_at(scored: Scored, resamples: Resamples, threshold: float) -> BootstrapDistribution:
    """F1 at a threshold of the calibrated scores that is given, not chosen."""
    return _at([(scored, threshold)], resamples)["f1"]


def _at(several: Sequence[tuple[Scored, float]], resamples: Resamples) -> dict[str, BootstrapDistribution]:
    """The figures of `THRESHOLD_METRICS`, and the counts, of findings with a threshold each."""
    sums = np.zeros((4, resamples.weights.shape[1]))
    # Images of each patient that are so, over all the findings.
    held = {name: np.zeros(resamples.patients) for name in DENOMINATORS}
    for scored, threshold in several:
        assert scored.scores is not None
        positive, negative, called = scored.labels == 1, scored.labels == 0, scored.scores >= threshold
        cells = [positive & called, negative & called, positive & ~called, negative & ~called]
        sums += resamples.totals(np.stack(cells, axis=1)).T
        for name, members in DENOMINATORS.items():
            held[name] += resamples.counts(
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
    found = {
        name: BootstrapDistribution(value, Support.of(held[name]), scale.get(name, "share"))
        for name, value in values.items()
    }
    return found | {
        name: BootstrapDistribution(value, NO_SUPPORT, "free")
        for name, value in zip(CELLS, sums, strict=True)
    }


CELLS = ("tp", "fp", "fn", "tn")
# Which images a figure is a share of.
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
    """The figures of `reliability.CALIBRATION_METRICS` of the calibrated scores; empty if there are none.

    With `raw`, of the sigmoid of the raw logits, to show what calibration changes: that is no probability.
    """
    if scored.scores is None:
        return {}
    scores = sigmoid(scored.logits) if raw else scored.scores
    return errors(scores, scored.labels, resamples, bins)


def too_few(scored: Scored, patient: Array, least: int, split: str = "test") -> str | None:
    """Why a finding is not estimable on these rows; None if it is.

    Args:
        scored: the finding.
        patient: number of each row's patient [rows].
        least: patients with a positive image, and patients with a negative one, that are needed.
        split: what the images are.
    """
    reasons = []
    for label, kind in ((1, "positive"), (0, "negative")):
        count = len(np.unique(patient[scored.labels == label]))
        if count < least:
            patients = "patient" if count == 1 else "patients"
            reasons.append(f"{count} {patients} with {kind} {split} images, at least {least} needed")
    return "; ".join(reasons) or None


def sigmoid(logits: Array) -> Array:
    """Raw logits squeezed into (0, 1): no probabilities, for a loss such as RAL least of all."""
    return np.asarray(0.5 * (1 + np.tanh(logits / 2)))
