"""Decision curves (Vickers and Elkin, 2006): net benefit of acting on the calibrated score, by threshold probability.

The threshold probability t is the score at which acting and not acting are equally good, so it states how many false
alarms a true positive is worth: (1 − t) / t. Over n images, NB(t) = TP/n − FP/n · t/(1 − t).
"""

import math
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ral.evaluation.bootstrap import BootstrapDistribution, Resamples, Support
from ral.evaluation.metrics import divide

Array = NDArray[Any]

# Threshold probabilities of a curve, and limits of the highest.
POINTS = 25
LOWEST_END, HIGHEST_END = 0.05, 0.5
COLUMNS = ("threshold", "net_benefit", "low", "high", "all", "images")


def thresholds(prevalence: float) -> Array:
    """Evenly spaced threshold probabilities up to about five times a prevalence, float64 [POINTS].

    The last is a multiple of 0.05, at least 0.05 and at most 0.5. For a rare finding, all thresholds of
    interest are low.

    Args:
        prevalence: of the finding in training, so that the grid does not depend on the test images.
    """
    end = math.ceil(round(100 * prevalence, 9)) / 20
    end = min(max(end, LOWEST_END), HIGHEST_END)
    return np.round(end * np.arange(1, POINTS + 1) / POINTS, 6)


def net_benefit(scores: Array, labels: Array, at: Array, resamples: Resamples) -> tuple[Array, Array]:
    """Net benefit of calling the images positive whose score is at or above t, and of calling all, in every resample.

    Args:
        scores: calibrated scores [rows].
        labels: 1, 0 or NaN [rows]; rows with NaN are ignored.
        at: threshold probabilities, each in (0, 1) [thresholds].
        resamples: of the same rows.

    Returns:
        Two arrays, each float64 [columns, thresholds]; NaN where a resample has no image with a known label.
    """
    true, false, positives, negatives = _counts(scores, labels, at, resamples)
    images, odds = positives + negatives, at / (1 - at)
    some = np.broadcast_to(images > 0, true.shape)
    return divide(true - false * odds, images, some), divide(positives - negatives * odds, images, some)


def curve(scores: Array, labels: Array, at: Array, resamples: Resamples) -> pd.DataFrame:
    """A decision curve with the columns `COLUMNS`, a row per threshold probability.

    low and high are the interval of net_benefit, NaN where there is none; all is the net benefit of calling all images
    positive (calling none has 0), images the number of images with a known label. Arguments as for `net_benefit`.
    """
    model, everything = net_benefit(scores, labels, at, resamples)
    support = resamples.support(labels)
    below, above = _unseen(scores, labels, at, resamples)
    rows = []
    for index, threshold in enumerate(at):
        unseen = (float(below[index]), float(above[index]))
        interval = resamples.interval(BootstrapDistribution(model[:, index], support, "free", unseen))
        rows.append(
            {
                "threshold": float(threshold),
                "net_benefit": interval.value,
                "low": interval.low,
                "high": interval.high,
                "all": everything[0, index],
                "images": int((~np.isnan(labels)).sum()),
            }
        )
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _counts(
    scores: Array, labels: Array, at: Array, resamples: Resamples
) -> tuple[Array, Array, Array, Array]:
    """True and false positives [columns, thresholds], positives and negatives [columns, 1] in every resample."""
    known = ~np.isnan(labels)
    scores, labels, resamples = scores[known], labels[known], resamples.rows(known)
    called, positive = scores[:, None] >= at, labels[:, None] == 1
    sums = resamples.totals(
        np.concatenate([called & positive, called & ~positive, positive, ~positive], axis=1)
    )
    return sums[:, : len(at)], sums[:, len(at) : -2], sums[:, -2:-1], sums[:, -1:]


def _unseen(scores: Array, labels: Array, at: Array, resamples: Resamples) -> tuple[Array, Array]:
    """Uncertainty below and above the net benefit that the resamples do not show [thresholds].

    NB = prevalence · sensitivity − (1 − prevalence) · false positive rate · t/(1 − t). If one of the two
    shares is 0 or 1 in all resamples, as with few positives, the exact interval of that share says how far
    the truth may be.
    """
    true, false, positives, negatives = _counts(scores, labels, at, resamples)
    prevalence = positives[0, 0] / max(positives[0, 0] + negatives[0, 0], 1)
    parts = []
    for hits, total, label in ((true, positives, 1), (false, negatives, 0)):
        share = divide(hits, total, np.broadcast_to(total > 0, hits.shape))
        support = Support.of(resamples.counts(labels == label))
        parts.append(
            np.array([resamples.unseen(BootstrapDistribution(one, support, "share")) for one in share.T])
        )
    sensitivity, fall_out = prevalence * parts[0], ((1 - prevalence) * at / (1 - at))[:, None] * parts[1]
    return np.hypot(sensitivity[:, 0], fall_out[:, 1]), np.hypot(sensitivity[:, 1], fall_out[:, 0])
