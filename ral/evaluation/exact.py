"""Exact intervals of proportions whose images are not independent: Clopper-Pearson with an effective sample size."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc, betaincinv, ndtri, stdtrit

Array = NDArray[Any]


def clopper_pearson(share: float, trials: float, confidence: float) -> tuple[float, float]:
    """Exact interval of a proportion (Clopper and Pearson, 1934); a number of trials need not be whole.

    Args:
        share: hits per trial, 0 to 1.
        trials: how many independent trials tell as much.
        confidence: coverage.
    """
    tail, hits, misses = (1 - confidence) / 2, share * trials, (1 - share) * trials
    low = betaincinv(hits, misses + 1, tail) if hits > 0 else 0.0
    high = betaincinv(hits + 1, misses, 1 - tail) if misses > 0 else 1.0
    return float(low), float(high)


def effective_trials(
    share: float, variance: float, patients: float, images: float, confidence: float
) -> float:
    """Trials that tell as much of a proportion as its images do (Korn and Graubard, 1998).

    That is the number which would give the variance found, less what few patients leave unknown about that variance
    (the ratio of normal to t quantile, squared). Images of a patient are at worst all alike and at best independent:
    the number is at least `patients` and at most `images`. Where nothing varies, it is `patients`.

    Args:
        share: the proportion, 0 to 1.
        variance: of the proportion, over samples of patients; 0 where it is not known.
        patients: effective number of patients of the denominator (Kish).
        images: in the denominator.
        confidence: coverage that the interval is to have.
    """
    if variance <= 0:
        return patients
    tail = (1 - confidence) / 2
    unknown = ndtri(tail) / stdtrit(max(patients - 1, 1.0), tail)
    return float(np.clip(share * (1 - share) / variance * unknown**2, patients, max(patients, images)))


def middle_tail(share: Array, trials: float, truth: float) -> Array:
    """Chance of more hits than `share`, and half the chance of as many, if the proportion is `truth` (the mid-P)."""
    hits, misses = share * trials, np.maximum((1 - share) * trials, 0.0)
    more = np.where(misses > 0, betainc(hits + 1, np.maximum(misses, 1e-300), truth), 0.0)
    as_many = np.where(hits > 0, betainc(np.maximum(hits, 1e-300), misses + 1, truth), 1.0)
    return np.asarray((more + as_many) / 2)


def jaccard(f1: Array | float) -> Array:
    """2 TP / (2 TP + FP + FN) as TP / (TP + FP + FN): a proportion of the images with a call or the finding."""
    return np.asarray(f1 / (2 - np.asarray(f1)))


def f1_of(share: float) -> float:
    """The inverse of `jaccard`."""
    return 2 * share / (1 + share)
