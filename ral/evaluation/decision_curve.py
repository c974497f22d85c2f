"""Decision curves (Vickers and Elkin, 2006): net benefit of acting on the calibrated score, by threshold probability.

The threshold probability t is the score at which acting and not acting are equally good, so it states how many false
alarms a true positive is worth: (1 − t) / t. Over n images, NB(t) = TP/n − FP/n · t/(1 − t).
"""

import math
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ral.evaluation.bootstrap import BootstrapDistribution, Resamples
from ral.evaluation.metrics import divide

Array = NDArray[Any]

# Threshold probabilities of a curve, and limits of the highest.
POINTS = 25
LOWEST_END, HIGHEST_END = 0.05, 0.5
COLUMNS = ("threshold", "net_benefit", "low", "high", "all", "images")


def thresholds(prevalence: float) -> Array:
    """Evenly spaced threshold probabilities up to about five times a prevalence, float64 [POINTS].

    The last is a multiple of 0.05, at least 0.05 and at most 0.5. For a rare finding, all thresholds of interest are low.

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
    known = ~np.isnan(labels)
    scores, labels, resamples = scores[known], labels[known], resamples.rows(known)
    called = scores[:, None] >= at
    positive = labels[:, None] == 1
    sums = resamples.totals(
        np.concatenate([called & positive, called & ~positive, positive, ~positive], axis=1)
    )
    true, false = sums[:, : len(at)], sums[:, len(at) : -2]
    positives, negatives = sums[:, -2:-1], sums[:, -1:]
    images, odds = positives + negatives, at / (1 - at)
    some = np.broadcast_to(images > 0, true.shape)
    return divide(true - false * odds, images, some), divide(positives - negatives * odds, images, some)


def curve(scores: Array, labels: Array, at: Array, resamples: Resamples) -> pd.DataFrame:
    """A decision curve with the columns `COLUMNS`, a row per threshold probability.

    low and high are the interval of net_benefit, NaN where all resamples have the same value: if no image is called, they
    do not show how far the net benefit may be from 0. all is the net benefit of calling all images positive (calling none
    has 0), images the number of images with a known label. Arguments as for `net_benefit`.
    """
    model, everything = net_benefit(scores, labels, at, resamples)
    support = resamples.support(labels)
    rows = []
    for index, threshold in enumerate(at):
        sampled = BootstrapDistribution(model[:, index], support, "free")
        interval = resamples.interval(sampled)
        varies = np.any(resamples.drawn(sampled) != interval.value)
        rows.append(
            {
                "threshold": float(threshold),
                "net_benefit": interval.value,
                "low": interval.low if varies else None,
                "high": interval.high if varies else None,
                "all": everything[0, index],
                "images": int((~np.isnan(labels)).sum()),
            }
        )
    return pd.DataFrame(rows, columns=list(COLUMNS))
