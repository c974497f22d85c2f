"""Exact intervals of proportions of dependent images: Clopper-Pearson with an effective sample size."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc, betaincinv, ndtri, stdtrit

Array = NDArray[Any]


def clopper_pearson(share: float, trials: float, confidence: float) -> tuple[float, float]:
    """Exact interval of a proportion (Clopper and Pearson, 1934); `trials` need not be an integer.

    Args:
        share: hits per trial, 0 to 1.
        trials: effective number of independent trials.
        confidence: coverage.
    """
    tail, hits, misses = (1 - confidence) / 2, share * trials, (1 - share) * trials
    low = betaincinv(hits, misses + 1, tail) if hits > 0 else 0.0
    high = betaincinv(hits + 1, misses, 1 - tail) if misses > 0 else 1.0
    return float(low), float(high)


def effective_trials(
    share: float, variance: float, patients: float, images: float, confidence: float
) -> float:
    """Effective number of independent trials of a proportion (Korn and Graubard, 1998).

    That is the number of trials that would give the observed variance, reduced because the variance itself is uncertain
    with few patients (squared ratio of normal to t quantile). Images of a patient are at worst identical and at best
    independent, so the result lies between `patients` and `images`. If the variance is 0, it is `patients`.

    Args:
        share: the proportion, 0 to 1.
        variance: variance of the proportion over resamples of patients; 0 if unknown.
        patients: effective number of patients in the denominator (Kish).
        images: number of images in the denominator.
        confidence: coverage of the interval.
    """
    if variance <= 0:
        return patients
    tail = (1 - confidence) / 2
    quantile_ratio = ndtri(tail) / stdtrit(max(patients - 1, 1.0), tail)
    return float(np.clip(share * (1 - share) / variance * quantile_ratio**2, patients, max(patients, images)))


def middle_tail(share: Array, trials: float, truth: float) -> Array:
    """Mid-P value: probability of more hits than `share` plus half that of exactly as many, if the proportion
    is `truth`.
    """
    hits, misses = share * trials, np.maximum((1 - share) * trials, 0.0)
    more = np.where(misses > 0, betainc(hits + 1, np.maximum(misses, 1e-300), truth), 0.0)
    equal = np.where(hits > 0, betainc(np.maximum(hits, 1e-300), misses + 1, truth), 1.0)
    return np.asarray((more + equal) / 2)


def jaccard(f1: Array | float) -> Array:
    """2 TP / (2 TP + FP + FN) as TP / (TP + FP + FN): a proportion of the images that are predicted or
    labelled positive.
    """
    return np.asarray(f1 / (2 - np.asarray(f1)))


def f1_of(share: float) -> float:
    """The inverse of `jaccard`."""
    return 2 * share / (1 + share)
