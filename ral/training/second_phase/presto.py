"""PRESTO: negative < uncertain < positive, with boundaries of similar slope (arXiv 2305.18627).

Positives are often far fewer than uncertain labels. Cumulative logits, P(negative) = σ(a₁ + b₁·f) and
P(not positive) = σ(a₂ + b₂·f), let the rare boundary learn from the frequent one: b₂ − b₁ has an L1 penalty.
"""

from typing import NamedTuple

import numpy as np
from scipy.special import expit

from ral.config.second_phase import PrestoOptions
from ral.errors import UserError
from ral.training.second_phase.base import Array, LinearHead, TrainingSet, constant, logistic, stack

# Proximal gradient descent stops when no parameter would move by more, in units of the gradient.
TOLERANCE = 1e-8
ITERATIONS = 20_000


class Boundaries(NamedTuple):
    """Both boundaries of a finding."""

    bias: Array
    """a₁ and a₂ [2]."""
    slope: Array
    """b₁ [width]."""
    difference: Array
    """b₂ − b₁ [width]."""


def fit(options: PrestoOptions, train: TrainingSet, seed: int) -> LinearHead:
    """The head of the boundary between positive and the rest; `seed` is not used, nothing is drawn.

    A finding without uncertain labels has an ordinary logistic regression.

    Raises:
        UserError: the training set does not say which labels are uncertain.
    """
    if train.uncertain is None:
        raise UserError(
            "presto needs to know which labels are uncertain (CheXpert, MIMIC), and these data do not say so. Set "
            "data.uncertain: keep and run preprocess again, or use another method."
        )
    width = train.features.shape[1]
    heads = []
    for target, uncertain in zip(train.targets.T, train.uncertain.T, strict=True):
        rank = np.where(uncertain, 1.0, 2 * target)
        known = ~np.isnan(rank)
        features, rank = train.features[known], rank[known]
        if len(set(rank)) < 3:
            certain = rank != 1
            binary = rank[certain] / 2
            ordinary = len(set(binary)) == 2
            heads.append(
                logistic(features[certain], binary, np.ones(len(binary)), options.l2)
                if ordinary
                else constant(np.where(rank == 2, 1.0, 0.0), width)
            )
            continue
        found = boundaries(features, rank, options)
        heads.append((-(found.slope + found.difference), float(-found.bias[1])))
    return stack(heads)


def boundaries(features: Array, rank: Array, options: PrestoOptions) -> Boundaries:
    """Minimise the mean negative log-likelihood + ½ l2 (|b₁|² + |b₂ − b₁|²) + shrink |b₂ − b₁|₁.

    The paper also penalises |b₁|₁; without that, `shrink` → ∞ is the proportional-odds model. Accelerated
    proximal gradient (Beck and Teboulle, 2009) with backtracking, restarted when the objective would rise.

    Args:
        features: float64 [images, width].
        rank: 0 negative, 1 uncertain, 2 positive [images]; all three occur.
        options: l2 and shrink.
    """
    shares = np.cumsum(np.bincount(rank.astype(int), minlength=3)[:2]) / len(rank)
    width = features.shape[1]
    now = np.concatenate([np.log(shares / (1 - shares)), np.zeros(2 * width)])
    objective, ahead, momentum, curvature = np.inf, now, 1.0, 1.0
    for _ in range(ITERATIONS):
        value, gradient = likelihood(features, rank, ahead, options.l2)
        if not np.isfinite(value):
            ahead, momentum = now, 1.0
            continue
        while True:
            moved = _shrunk(ahead - gradient / curvature, options.shrink / curvature)
            step = moved - ahead
            after, _ = likelihood(features, rank, moved, options.l2)
            if after <= value + gradient @ step + 0.5 * curvature * step @ step + 1e-15:
                break
            curvature *= 2
        total = after + options.shrink * np.abs(moved[2 + width :]).sum()
        if total > objective and momentum > 1:
            ahead, momentum = now, 1.0
            continue
        if curvature * np.abs(step).max() < TOLERANCE:
            now = moved
            break
        grown = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        ahead = moved + (momentum - 1) / grown * (moved - now)
        now, objective, momentum = moved, total, grown
        curvature *= 0.95
    return Boundaries(now[:2], now[2 : 2 + width], now[2 + width :])


def likelihood(features: Array, rank: Array, parameters: Array, l2: float) -> tuple[float, Array]:
    """Mean negative log-likelihood with the L2 penalty, and its gradient; infinite where the boundaries cross at
    an uncertain label.

    Args:
        features: float64 [images, width].
        rank: 0, 1 or 2 [images].
        parameters: a₁, a₂, b₁, b₂ − b₁ [2 + 2 width].
        l2: weight of the penalty.
    """
    width = features.shape[1]
    slope, difference = parameters[2 : 2 + width], parameters[2 + width :]
    lower = parameters[0] + features @ slope
    upper = parameters[1] + features @ (slope + difference)
    negative, middle, positive = rank == 0, rank == 1, rank == 2
    gap = (upper - lower)[middle]
    if (gap <= 0).any():
        return np.inf, np.zeros_like(parameters)
    # log(σ(u) − σ(l)) = log σ(u) + log σ(−l) + log(1 − exp(l − u))
    loss = np.logaddexp(0, -lower[negative]).sum() + np.logaddexp(0, upper[positive]).sum()
    loss += (np.logaddexp(0, -upper[middle]) + np.logaddexp(0, lower[middle])).sum()
    loss -= np.log(-np.expm1(-gap)).sum()
    narrow = np.zeros(len(rank))
    narrow[middle] = np.exp(-gap) / -np.expm1(-gap)
    by_lower = np.where(negative, -expit(-lower), np.where(middle, expit(lower) + narrow, 0)) / len(rank)
    by_upper = np.where(positive, expit(upper), np.where(middle, -expit(-upper) - narrow, 0)) / len(rank)
    gradient = np.concatenate(
        [
            [by_lower.sum(), by_upper.sum()],
            features.T @ (by_lower + by_upper) + l2 * slope,
            features.T @ by_upper + l2 * difference,
        ]
    )
    return float(loss / len(rank) + 0.5 * l2 * (slope @ slope + difference @ difference)), gradient


def _shrunk(parameters: Array, by: float) -> Array:
    """The parameters with the difference of the slopes moved towards 0 (soft threshold)."""
    result = parameters.copy()
    start = 2 + (len(parameters) - 2) // 2
    tail = result[start:]
    result[start:] = np.sign(tail) * np.maximum(np.abs(tail) - by, 0)
    return result
