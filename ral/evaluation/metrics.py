"""AUROC, average precision and operating points of one finding, for the sample and for many sets of patient weights.

A finding is sorted once. Between two scores of positives only the number of negatives matters, so the rows are
aggregated into one segment per score of a positive, a sparse matrix [segments, patients]. Its product with the weights
[patients, columns] gives the counts of all resamples at once, and cumulative sums over the segments give the metrics.
Weights are integers, so all counts are exact.

Scores are logits [rows], any finite real numbers. Labels [rows] are 1, 0 or NaN; rows with an unknown label (NaN) are
ignored.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from ral.evaluation.specs import RANKING_METRICS

Array = NDArray[Any]

# Numbers per block of resamples; a block fits in the CPU cache.
BLOCK = 50_000

# The specificity at which sensitivity is reported, and vice versa.
LEVEL = 0.9


@dataclass(frozen=True)
class Cuts:
    """The distinct scores of the known rows in descending order, with the counts at or above each."""

    thresholds: Array
    """The scores, float64 [cuts]."""
    true_positives: Array
    """Positive rows with a score of at least the threshold, int64 [cuts]."""
    false_positives: Array
    """Negative rows with a score of at least the threshold, int64 [cuts]."""


@dataclass(frozen=True)
class Ranking:
    """The known rows of a finding in descending order of the score, aggregated by patient; see `rank`.

    A step is a distinct score of at least one positive row.
    """

    positives: csr_array
    """Positive rows of each patient at each step, [steps, patients]."""
    negatives: csr_array
    """Negative rows of each patient above the step and not above the one before, ties included, [steps + 1, patients];
    the last row is everything below the last step."""
    tied: csr_array
    """Negative rows of each patient that share the score of the step, [steps with a tie, patients]."""
    tied_steps: Array
    """Indices of these steps, int64 [steps with a tie]."""


def rank(scores: Array, labels: Array, patients: Array, count: int) -> Ranking:
    """Sort a finding once.

    Args:
        scores: logits [rows].
        labels: 1, 0 or NaN [rows].
        patients: index of each row's patient, 0 to count - 1 [rows].
        count: number of patients.
    """
    known = np.flatnonzero(~np.isnan(labels))
    scores = np.asarray(scores, dtype=np.float64)[known]
    positive, patients = labels[known] == 1, patients[known]
    ascending = np.unique(scores[positive])
    # The highest step that a row reaches; steps are numbered from the top, the last number is below all steps.
    step = len(ascending) - np.searchsorted(ascending, scores, side="right")
    tied = ~positive & np.isin(scores, ascending)
    tied_steps, tied_row = np.unique(step[tied], return_inverse=True)
    return Ranking(
        positives=_counts(step[positive], patients[positive], (len(ascending), count)),
        negatives=_counts(step[~positive], patients[~positive], (len(ascending) + 1, count)),
        tied=_counts(tied_row, patients[tied], (len(tied_steps), count)),
        tied_steps=tied_steps,
    )


def ranked(ranking: Ranking, weights: Array, names: Sequence[str] = RANKING_METRICS) -> dict[str, Array]:
    """Metrics of a ranking under each column of `weights`, in one pass: name -> float64 [columns].

    AUROC counts a tie as one half; AP is the step-wise area under precision over recall. Sensitivity at 90 %
    specificity is the highest sensitivity of all thresholds with at least that specificity, without
    interpolation; specificity at 90 % sensitivity likewise. A column without positives is NaN, and, except
    for AP, so is one without negatives.

    Args:
        ranking: see `rank`.
        weights: how often each patient is in each resample, integers [patients, columns].
        names: the metrics of `RANKING_METRICS` to compute.
    """
    steps, columns = ranking.positives.shape[0], weights.shape[1]
    values = {name: np.full(columns, np.nan) for name in names}
    if steps == 0:
        return values
    size = max(16, BLOCK // max(steps, weights.shape[0]))
    for start in range(0, columns, size):
        stop = min(start + size, columns)
        block = _ranked(ranking, weights[:, start:stop].astype(np.float64), names)
        for name in names:
            values[name][start:stop] = block[name]
    return values


def auroc(scores: Array, labels: Array) -> float:
    """Area under the ROC curve, ties counted as one half; NaN without a positive or without a negative."""
    return _unweighted(scores, labels, "auroc")


def ap(scores: Array, labels: Array) -> float:
    """Average precision, the step-wise area under precision over recall; NaN without a positive."""
    return _unweighted(scores, labels, "ap")


def f1(true_positives: Array, false_positives: Array, positives: Array) -> Array:
    """F1 from counts of any shape; NaN without a positive."""
    # The denominator is 2 TP + FP + FN.
    return divide(2 * true_positives, true_positives + false_positives + positives, positives > 0)


def cuts(scores: Array, labels: Array) -> Cuts:
    """All thresholds at which the predictions for the known rows change; empty without known rows."""
    known = ~np.isnan(labels)
    thresholds, cut_index = np.unique(-np.asarray(scores, dtype=np.float64)[known], return_inverse=True)
    true = np.bincount(cut_index[labels[known] == 1], minlength=len(thresholds))
    false = np.bincount(cut_index[labels[known] == 0], minlength=len(thresholds))
    return Cuts(-thresholds, np.cumsum(true), np.cumsum(false))


def divide(top: Array, bottom: Array, where: Array, otherwise: float = float("nan")) -> Array:
    """`top` / `bottom`, and `otherwise` outside `where`."""
    ratio = np.full(np.shape(top), otherwise)
    np.divide(top, bottom, out=ratio, where=where)
    return ratio


def _ranked(ranking: Ranking, weights: Array, names: Sequence[str]) -> dict[str, Array]:
    """The metrics of one block of float64 weights [patients, columns]."""
    gained = ranking.positives @ weights
    true = np.cumsum(gained, axis=0)
    false = ranking.negatives @ weights
    np.cumsum(false, axis=0, out=false)
    positives, negatives = true[-1].copy(), false[-1].copy()
    false = false[:-1]
    both = (positives > 0) & (negatives > 0)
    values = {}
    if "sensitivity_at_90_specificity" in names:
        # The tolerance keeps a rate that differs from 0.9 only by rounding.
        allowed = false <= (1 - LEVEL + 1e-12) * negatives
        true_positives = np.einsum("kc,kc->c", gained, allowed)
        values["sensitivity_at_90_specificity"] = divide(true_positives, positives, both)
    if "specificity_at_90_sensitivity" in names:
        first = (true < (LEVEL - 1e-12) * positives).sum(axis=0)
        false_positives = false[np.minimum(first, len(false) - 1), np.arange(len(first))]
        values["specificity_at_90_sensitivity"] = divide(negatives - false_positives, negatives, both)
    if "auroc" in names:
        area = positives * negatives - np.einsum("kc,kc->c", gained, false)
        if len(ranking.tied_steps):
            half = ranking.tied @ weights
            area += 0.5 * np.einsum("kc,kc->c", gained[ranking.tied_steps], half)
        values["auroc"] = divide(area, positives * negatives, both)
    if "ap" in names:
        above = false
        above += true
        # Avoids 0 / 0 above the first row drawn, where no positive is gained.
        np.maximum(above, 1, out=above)
        true /= above
        values["ap"] = divide(np.einsum("kc,kc->c", gained, true), positives, positives > 0)
    return values


def _counts(steps: Array, patients: Array, shape: tuple[int, int]) -> csr_array:
    """Number of rows of each patient at each step; duplicate entries are summed."""
    return csr_array((np.ones(len(steps)), (steps, patients)), shape=shape)


def _unweighted(scores: Array, labels: Array, name: str) -> float:
    """A metric of the rows without resampling."""
    once = np.ones((1, 1), np.uint16)
    return float(ranked(rank(scores, labels, np.zeros(len(scores), np.int64), 1), once, (name,))[name][0])
