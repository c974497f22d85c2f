"""AUROC, average precision and F1 of one finding, plain and under bootstrap weights.

Scores are logits [rows], any finite real numbers. Labels [rows] are 1, 0 or NaN; a row with NaN is unknown
and counts nowhere. Weights [replicates, rows] say how often each replicate holds a row.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

# Most weights handled at a time: keeps the work in the cache of the processor and the memory small.
BLOCK = 200_000


@dataclass(frozen=True)
class Cuts:
    """The distinct scores of the known rows from high to low, with what is positive at or above each."""

    thresholds: Array
    """The scores, float64 [cuts]."""
    true_positives: Array
    """Positive rows with a score of at least the threshold, int64 [cuts]."""
    false_positives: Array
    """Negative rows with a score of at least the threshold, int64 [cuts]."""


def auroc(scores: Array, labels: Array) -> float:
    """Area under the ROC curve, a tie counted half; NaN without a positive or without a negative."""
    return float(auroc_and_ap(scores, labels, _once(scores))[0][0])


def ap(scores: Array, labels: Array) -> float:
    """Average precision, the step-wise area under precision over recall; NaN without a positive."""
    return float(auroc_and_ap(scores, labels, _once(scores))[1][0])


def f1(scores: Array, labels: Array, threshold: float) -> float:
    """F1 when a score of at least `threshold` is called positive; NaN without a positive."""
    return float(f1_weighted(scores, labels, threshold, _once(scores))[0])


def auroc_and_ap(scores: Array, labels: Array, weights: Array) -> tuple[Array, Array]:
    """AUROC [replicates] and AP [replicates] under integer `weights` [replicates, rows], from one sort.

    A replicate without a positive is NaN in both, one without a negative is NaN in AUROC.
    """
    order, positive, last, _ = _sorted(scores, labels)
    size = max(1, BLOCK // max(1, len(order)))
    blocks = [
        _auroc_and_ap(weights[start : start + size][:, order], positive, last)
        for start in range(0, len(weights), size)
    ]
    return np.concatenate([block[0] for block in blocks]), np.concatenate([block[1] for block in blocks])


def f1_weighted(scores: Array, labels: Array, threshold: float, weights: Array) -> Array:
    """F1 [replicates] at one threshold under integer `weights` [replicates, rows]; NaN without a positive."""
    called, positive = scores >= threshold, labels == 1
    true_positives = _total(weights, called & positive)
    false_positives = _total(weights, called & (labels == 0))
    positives = _total(weights, positive)
    # 2 TP + FP + FN, written without the FN.
    return _divide(2 * true_positives, true_positives + false_positives + positives, positives > 0)


def best_f1_threshold(scores: Array, labels: Array) -> float:
    """The observed score with the highest F1 as threshold, of several the highest; NaN without a positive."""
    cut = cuts(scores, labels)
    positives = int((labels == 1).sum())
    if positives == 0:
        return float("nan")
    value = 2 * cut.true_positives / (cut.true_positives + cut.false_positives + positives)
    return float(cut.thresholds[np.argmax(value)])  # argmax takes the first, and the cuts fall


def cuts(scores: Array, labels: Array) -> Cuts:
    """Every threshold at which the calls on the known rows change; no cut without a known row."""
    _, positive, last, thresholds = _sorted(scores, labels)
    return Cuts(thresholds, np.cumsum(positive)[last], np.cumsum(~positive)[last])


def _sorted(scores: Array, labels: Array) -> tuple[Array, Array, Array, Array]:
    """Known rows from high to low score, which are positive, the last of each tie, the distinct scores."""
    known = np.flatnonzero(~np.isnan(labels))
    falling = -np.asarray(scores, dtype=np.float64)[known]
    order = known[np.argsort(falling, kind="stable")]
    values, sizes = np.unique(falling, return_counts=True)
    return order, labels[order] == 1, np.cumsum(sizes) - 1, -values


def _auroc_and_ap(weights: Array, positive: Array, last: Array) -> tuple[Array, Array]:
    """AUROC and AP [replicates] from weights [replicates, rows] in falling order of the score."""
    weights = weights.astype(np.int64)
    above = np.cumsum(weights, axis=1)[:, last]
    true = np.cumsum(weights * positive, axis=1)[:, last]
    gained = np.diff(true, axis=1, prepend=0)
    rows, positives = weights.sum(axis=1), weights[:, positive].sum(axis=1)
    negatives = rows - positives
    # A trapezoid per tie, doubled to stay in whole numbers.
    area = (np.diff(above - true, axis=1, prepend=0) * (2 * true - gained)).sum(axis=1)
    # Above the first row drawn there is no precision, and nothing is gained either.
    steps = (gained * _divide(true, above, above > 0, otherwise=0.0)).sum(axis=1)
    return (
        _divide(area, 2 * positives * negatives, (positives > 0) & (negatives > 0)),
        _divide(steps, positives, positives > 0),
    )


def _once(scores: Array) -> Array:
    """One replicate that holds every row once."""
    return np.ones((1, len(scores)), dtype=np.uint16)


def _total(weights: Array, chosen: Array) -> Array:
    """Weight of the chosen rows, int64 [replicates]."""
    return np.asarray(weights[:, chosen].sum(axis=1, dtype=np.int64))


def _divide(top: Array, bottom: Array, where: Array, otherwise: float = float("nan")) -> Array:
    """`top` / `bottom`, and `otherwise` outside `where`."""
    ratio = np.full(top.shape, otherwise)
    np.divide(top, bottom, out=ratio, where=where)
    return ratio
