"""Calibration metrics: Brier score, log loss, expected calibration error (ECE), reliability curves.

All of these are sums over images, so each resample is a matrix product.
"""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import erf

from ral.evaluation.bootstrap import NO_SUPPORT, BootstrapDistribution, Resamples, Support
from ral.evaluation.calibration import log_losses
from ral.evaluation.metrics import divide

Array = NDArray[Any]


def bin_index(scores: Array, bins: int) -> Array:
    """Index of the bin of each score, int64 [rows], 0 for the lowest; bins have equal counts except for ties."""
    edges = np.unique(np.quantile(scores, np.arange(1, bins) / bins))
    return np.searchsorted(edges, scores, side="right")


def binned(scores: Array, labels: Array, resamples: Resamples, bins: int) -> tuple[Array, Array, Array]:
    """Images, positive images and sum of the scores per bin in every resample, each float64 [columns, bins].

    Args:
        scores: [rows], of images whose label is known.
        labels: 1 or 0 [rows].
        resamples: of the same rows.
        bins: maximum number of bins.
    """
    member = np.eye(bins)[bin_index(scores, bins)]
    sums = resamples.totals(
        np.concatenate([member, member * labels[:, None], member * scores[:, None]], axis=1)
    )
    return sums[:, :bins], sums[:, bins : 2 * bins], sums[:, 2 * bins :]


def errors(scores: Array, labels: Array, resamples: Resamples, bins: int) -> dict[str, BootstrapDistribution]:
    """The metrics `specs.CALIBRATION_METRICS` in every resample.

    ece is the mean over the images of |mean score − share of positives| of their bin. It is biased upwards by
    chance, and resampling adds to the bias of the sample: the replicates are shifted so that their mean is
    the value of the sample. The bias of the sample is at most the mean of |gap − gap of the sample| with the
    same weights (triangle inequality); the lower end of the interval is lowered by that amount.

    ece_debiased subtracts the bias expected for independent images, with normally distributed shares (Kumar et al.,
    2019), to first order, and is at least 0. Images of a patient are not independent, so it is still too
    high. It has no interval.

    Args:
        scores: [rows].
        labels: 1, 0 or NaN [rows]; rows with NaN are ignored.
        resamples: of the same rows.
        bins: maximum number of bins.
    """
    known = ~np.isnan(labels)
    support = resamples.support(labels)
    scores, labels, resamples = scores[known], labels[known], resamples.rows(known)
    images, positives, sums = binned(scores, labels, resamples, bins)
    total = images.sum(axis=1)
    brier, loss = resamples.totals(np.stack([(scores - labels) ** 2, log_losses(scores, labels)], axis=1)).T
    filled, some = images > 0, total > 0
    observed = divide(positives, images, filled, 0.0)
    gap = divide(sums, images, filled, 0.0) - observed
    share = images / np.maximum(total, 1)[:, None]
    ece = np.where(some, (share * np.abs(gap)).sum(axis=1), np.nan)
    drawn = slice(1, 1 + resamples.replicates)
    chance = np.where(some, (share * np.abs(gap - gap[0])).sum(axis=1), np.nan)[drawn]
    inflation = float(np.nanmean(chance)) if np.isfinite(chance).any() else 0.0
    return {
        "brier": BootstrapDistribution(divide(brier, total, some), support),
        "log_loss": BootstrapDistribution(divide(loss, total, some), support, "free"),
        "ece": BootstrapDistribution(_recentred(ece, drawn), support, inflation=inflation),
        "ece_debiased": BootstrapDistribution(_debiased(ece, gap, positives, images, share), NO_SUPPORT),
    }


def _debiased(ece: Array, gap: Array, positives: Array, images: Array, share: Array) -> Array:
    """ece_debiased [columns] from ece [columns] and its components, each [columns, bins]."""
    # Half a positive and half a negative are added, so that the variance of a bin without positives is not 0.
    smoothed, gap = (positives + 0.5) / (images + 1), np.abs(gap)
    spread = np.sqrt(divide(smoothed * (1 - smoothed), images, images > 0, 0.0))
    # The mean of |N(gap, spread²)|.
    ratio = divide(gap, spread, spread > 0, 0.0)
    inflated = np.where(
        spread > 0,
        spread * np.sqrt(2 / np.pi) * np.exp(-(ratio**2) / 2) + gap * erf(ratio / np.sqrt(2)),
        gap,
    )
    return np.asarray(np.maximum(2 * ece - (share * inflated).sum(axis=1), 0))


def _recentred(values: Array, drawn: slice) -> Array:
    """The values, with the replicates shifted so that their mean is the sample's value; none is below 0."""
    if np.isfinite(values[drawn]).any():
        values[drawn] = np.maximum(values[drawn] - np.nanmean(values[drawn]) + values[0], 0)
    return values


def curve(scores: Array, labels: Array, resamples: Resamples, bins: int) -> pd.DataFrame:
    """A reliability curve: images, positives, mean_score, observed, low and high of each non-empty bin.

    low and high are the interval of the observed share. Arguments as for `binned`.
    """
    images, positives, sums = binned(scores, labels, resamples, bins)
    index = bin_index(scores, bins)
    rows = []
    for number in np.flatnonzero(images[0] > 0):
        inside = resamples.rows(index == number)
        share = divide(positives[:, number], images[:, number], images[:, number] > 0)
        interval = resamples.interval(
            BootstrapDistribution(share, Support.of(np.bincount(inside.patient)), "share")
        )
        rows.append(
            {
                "images": int(images[0, number]),
                "positives": int(positives[0, number]),
                "mean_score": sums[0, number] / images[0, number],
                "observed": interval.value,
                "low": interval.low,
                "high": interval.high,
            }
        )
    return pd.DataFrame(rows, columns=["images", "positives", "mean_score", "observed", "low", "high"])
