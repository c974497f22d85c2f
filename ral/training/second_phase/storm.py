"""STORM: a weight per label that is learned from the losses themselves (arXiv 2412.12955), on a linear head.

A label's weight is Ω(loss, probability, entropy, log prevalence). Each round takes a step of the head on one half
of the patients with these weights, and moves Ω so that the weighted loss of the other half falls. For a linear
head the derivative of that loss by a weight is a product of two gradients; no second derivatives are needed.
The spread over augmented views, a further input of the paper's Ω, is not available from stored features.
"""

import numpy as np
from scipy.special import expit, xlogy

from ral.config.second_phase import StormOptions
from ral.training.second_phase.base import (
    Array,
    LinearHead,
    TrainingSet,
    curvature_bound,
    fit_labels,
    label_shares,
)
from ral.training.second_phase.crt import draws

# Inputs of Ω, and a constant.
INPUTS = 5
# Adam, with its usual constants.
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8


def fit(options: StormOptions, train: TrainingSet, seed: int) -> LinearHead:
    """cRT with the learned weights of the labels."""
    return fit_labels(train, draws(options, train, seed)[:, None] * learn(options, train, seed), options.l2)


def learn(options: StormOptions, train: TrainingSet, seed: int) -> Array:
    """The learned weights of the labels, float64 [images, findings], 0 where unknown.

    Their mean is 1 among the positives and among the negatives of each finding. Ω can then prefer some
    positives to others, but it cannot switch off a rare finding, whose positives all have a high loss.
    """
    rng = np.random.default_rng(seed)
    sampled = draws(options, train, seed)[:, None] * np.ones_like(train.targets)
    head = LinearHead(
        np.zeros((train.targets.shape[1], train.features.shape[1])), np.zeros(train.targets.shape[1])
    )
    rate = options.step / curvature_bound(train.features, label_shares(train.targets, sampled), options.l2)
    omega, moments = np.zeros(INPUTS), (np.zeros(INPUTS), np.zeros(INPUTS))
    for step in range(1, options.rounds + 1):
        inner, outer = halves(train.patients, rng)
        head, gradient = _round(train, (inner, outer), sampled, (head, omega), rate, options.l2)
        moments = (
            BETA1 * moments[0] + (1 - BETA1) * gradient,
            BETA2 * moments[1] + (1 - BETA2) * gradient**2,
        )
        first, second = moments[0] / (1 - BETA1**step), moments[1] / (1 - BETA2**step)
        omega = omega - options.learning_rate * first / (np.sqrt(second) + EPSILON)
    return label_weights(omega, inputs(head.logits(train.features), train.targets), train.targets)[0]


def halves(patients: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Rows of two halves of the images, split by patient."""
    numbers, index = np.unique(patients, return_inverse=True)
    first = rng.permutation(len(numbers))[index] < len(numbers) // 2
    return np.flatnonzero(first), np.flatnonzero(~first)


def _round(
    train: TrainingSet,
    rows: tuple[Array, Array],
    sampled: Array,
    state: tuple[LinearHead, Array],
    rate: Array,
    l2: float,
) -> tuple[LinearHead, Array]:
    """The head after a weighted step on the inner rows, and the derivative by Ω of the loss of the outer rows."""
    (head, omega), (inner, outer) = state, rows
    x, y, share = (
        train.features[inner],
        train.targets[inner],
        label_shares(train.targets[inner], sampled[inner]),
    )
    z = head.logits(x)
    weights, derivative = label_weights(omega, inputs(z, y), y)
    error = share * (expit(z) - np.nan_to_num(y))
    moved = LinearHead(
        head.weight - rate[:, None] * ((weights * error).T @ x + l2 * head.weight),
        head.bias - rate * (weights * error).sum(axis=0),
    )
    x_outer, y_outer = train.features[outer], train.targets[outer]
    share_outer = label_shares(y_outer, sampled[outer])
    z_outer = moved.logits(x_outer)
    weights_outer, derivative_outer = label_weights(omega, inputs(z_outer, y_outer), y_outer)
    error_outer = weights_outer * share_outer * (expit(z_outer) - np.nan_to_num(y_outer))
    by_weight = meta_gradient((x, error), (x_outer, error_outer), rate)
    loss_outer = share_outer * bce(z_outer, y_outer)
    gradient = np.einsum("ic,ick->k", by_weight, derivative)
    gradient += np.einsum("ic,ick->k", loss_outer, derivative_outer)
    return moved, gradient


def meta_gradient(inner: tuple[Array, Array], outer: tuple[Array, Array], rate: Array) -> Array:
    """Derivative of the outer loss after one gradient step, by the weight of each inner label [images, findings].

    With the inner loss Σ w e, whose gradient by a label's logit is w × error, a step moves a finding's head by
    −rate Σ w error (f, 1). The derivative is therefore −rate error (f, 1) · Σ outer error (f, 1).

    Args:
        inner: features [images, width] and unweighted logit gradients [images, findings], before the step.
        outer: features and logit gradients of the outer loss, after the step.
        rate: step of each finding [findings].
    """
    (x, error), (x_outer, error_outer) = inner, outer
    direction = error_outer.T @ x_outer
    derivative: Array = -rate * error * (x @ direction.T + error_outer.sum(axis=0))
    return derivative


def inputs(logits: Array, targets: Array) -> Array:
    """The inputs of Ω for each label [images, findings, INPUTS]; 0 where the label is unknown."""
    known = ~np.isnan(targets)
    p = expit(logits)
    entropy = -(xlogy(p, p) + xlogy(1 - p, 1 - p))
    prevalence = (np.nansum(targets, axis=0) + 0.5) / (known.sum(axis=0) + 1)
    parts = [
        bce(logits, targets),
        p,
        entropy,
        np.broadcast_to(np.log(prevalence), p.shape),
        np.ones_like(p),
    ]
    stacked: Array = np.where(known[:, :, None], np.stack(parts, axis=2), 0.0)
    return stacked


def bce(logits: Array, targets: Array) -> Array:
    """Binary cross-entropy of each label; 0 where it is unknown."""
    loss: Array = np.where(np.isnan(targets), 0.0, np.logaddexp(0, logits) - np.nan_to_num(targets) * logits)
    return loss


def label_weights(omega: Array, features: Array, targets: Array) -> tuple[Array, Array]:
    """Weights σ(ω · inputs), scaled to mean 1 per finding and label value, and their derivative by ω.

    Args:
        omega: float64 [INPUTS].
        features: the inputs [images, findings, INPUTS].
        targets: 1, 0 or NaN [images, findings]; the weight of an unknown label is 0.

    Returns:
        weights [images, findings] and derivatives [images, findings, INPUTS].
    """
    raw = expit(features @ omega)
    slope = (raw * (1 - raw))[:, :, None] * features
    weights, derivative = np.zeros_like(raw), np.zeros_like(slope)
    for value in (0.0, 1.0):
        group = targets == value
        count = np.maximum(group.sum(axis=0), 1)
        mean = np.where(group, raw, 0).sum(axis=0) / count
        mean_slope = np.where(group[:, :, None], slope, 0).sum(axis=0) / count[:, None]
        scale = np.where(mean > 0, mean, 1.0)
        weights += np.where(group, raw / scale, 0)
        derivative += np.where(
            group[:, :, None],
            slope / scale[:, None] - (raw / scale**2)[:, :, None] * mean_slope,
            0,
        )
    return weights, derivative
