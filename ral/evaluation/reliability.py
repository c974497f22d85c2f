"""How far calibrated scores are from what is observed: Brier score, log loss, calibration error, reliability curves.

All of it is sums over films, so that every resample is one matrix product.
"""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import erf

from ral.evaluation.bootstrap import Resamples, Sampled
from ral.evaluation.calibration import log_losses
from ral.evaluation.metrics import divide

Array = NDArray[Any]

ERRORS = ("brier", "log_loss", "ece", "ece_debiased")


def place(scores: Array, bins: int) -> Array:
    """Bin of each score, of equal numbers of films as far as ties allow: int64 [rows], 0 the lowest."""
    edges = np.unique(np.quantile(scores, np.arange(1, bins) / bins))
    return np.searchsorted(edges, scores, side="right")


def binned(scores: Array, labels: Array, resamples: Resamples, bins: int) -> tuple[Array, Array, Array]:
    """Films, positive films and sum of the scores per bin in every resample, each float64 [columns, bins].

    Args:
        scores: [rows], of films whose label is known.
        labels: 1 or 0 [rows].
        resamples: of the same rows.
        bins: at most so many.
    """
    member = np.eye(bins)[place(scores, bins)]
    sums = resamples.totals(
        np.concatenate([member, member * labels[:, None], member * scores[:, None]], axis=1)
    )
    return sums[:, :bins], sums[:, bins : 2 * bins], sums[:, 2 * bins :]


def errors(scores: Array, labels: Array, resamples: Resamples, bins: int) -> dict[str, Array]:
    """The figures of `ERRORS` in every resample [columns]; arguments as for `binned`.

    ece is the mean over the films of |mean score − share of positives| of their bin. Chance alone makes it larger
    than 0; ece_debiased takes off how much larger it would be, with the shares normally distributed about those
    observed (Kumar et al., 2019), to first order, and ends at 0. Resampling adds chance to that of the sample; both errors of the
    replicates are therefore moved so that their mean is the value of the sample.
    """
    films, positives, sums = binned(scores, labels, resamples, bins)
    total = films.sum(axis=1)
    brier, loss = resamples.totals(np.stack([(scores - labels) ** 2, log_losses(scores, labels)], axis=1)).T
    filled = films > 0
    observed = divide(positives, films, filled, 0.0)
    gap = np.abs(divide(sums, films, filled, 0.0) - observed)
    share = films / np.maximum(total, 1)[:, None]
    ece = (share * gap).sum(axis=1)
    # Half a positive and half a negative are added: a bin without positives is not free of chance.
    near = (positives + 0.5) / (films + 1)
    spread = np.sqrt(divide(near * (1 - near), films, filled, 0.0))
    # The mean of |N(gap, spread²)|.
    ratio = divide(gap, spread, spread > 0, 0.0)
    inflated = np.where(
        spread > 0,
        spread * np.sqrt(2 / np.pi) * np.exp(-(ratio**2) / 2) + gap * erf(ratio / np.sqrt(2)),
        gap,
    )
    debiased = np.maximum(2 * ece - (share * inflated).sum(axis=1), 0)
    some = total > 0
    return {
        "brier": divide(brier, total, some),
        "log_loss": divide(loss, total, some),
        "ece": _moved(np.where(some, ece, np.nan), resamples.replicates),
        "ece_debiased": _moved(np.where(some, debiased, np.nan), resamples.replicates),
    }


def _moved(values: Array, replicates: int) -> Array:
    """The values with the replicates about the value of the sample; none is below 0."""
    drawn = values[1 : 1 + replicates]
    if np.isfinite(drawn).any():
        values[1 : 1 + replicates] = np.maximum(drawn - np.nanmean(drawn) + values[0], 0)
    return values


def curve(scores: Array, labels: Array, resamples: Resamples, bins: int) -> pd.DataFrame:
    """A reliability curve: films, positives, mean_score, observed, low and high of each bin that holds a film.

    Low and high bound the observed share; they are NaN where the films are nearly all of one patient, or all
    positive or all negative. Arguments as for `binned`.
    """
    films, positives, sums = binned(scores, labels, resamples, bins)
    bin_of = place(scores, bins)
    rows = []
    for number in np.flatnonzero(films[0] > 0):
        inside = resamples.rows(bin_of == number)
        counts = np.bincount(inside.patient).astype(np.float64)
        share = divide(positives[:, number], films[:, number], films[:, number] > 0)
        found = resamples.interval(Sampled(share, counts.sum() ** 2 / np.sum(counts**2)))
        mixed = 0 < positives[0, number] < films[0, number]
        rows.append(
            {
                "films": int(films[0, number]),
                "positives": int(positives[0, number]),
                "mean_score": sums[0, number] / films[0, number],
                "observed": found.value,
                "low": found.low if mixed else None,
                "high": found.high if mixed else None,
            }
        )
    return pd.DataFrame(rows, columns=["films", "positives", "mean_score", "observed", "low", "high"])
