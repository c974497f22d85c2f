"""What the second-phase methods share: training features with labels, the linear head, the logistic fit."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

Array = NDArray[Any]

# Newton's method stops when no component of the gradient of the mean loss is larger.
TOLERANCE = 1e-11
ITERATIONS = 100
# A step that raises the loss by more than rounding is halved, at most so often.
ROUNDING, HALVINGS = 1e-13, 40


@dataclass(frozen=True)
class TrainingSet:
    """Standardised features of the training images; images of other splits are not in here."""

    features: Array
    """float64 [images, width], mean 0 and SD 1."""
    targets: Array
    """float64 [images, findings]: 1, 0, NaN where unknown."""
    patients: Array
    """Number of the patient, int64 [images]."""
    uncertain: Array | None = None
    """Whether the reader called the finding uncertain, bool [images, findings]; None: not recorded."""


@dataclass(frozen=True)
class LinearHead:
    """A linear classifier: weight float64 [findings, width], bias float64 [findings]."""

    weight: Array
    bias: Array

    def logits(self, features: Array) -> Array:
        """Raw logits [images, findings] of features [images, width]."""
        logits: Array = features @ self.weight.T + self.bias
        return logits


def stack(heads: list[tuple[Array, float]]) -> LinearHead:
    """One head of the weights [width] and biases of all findings."""
    return LinearHead(np.stack([weight for weight, _ in heads]), np.array([bias for _, bias in heads]))


def constant(target: Array, width: int) -> tuple[Array, float]:
    """Weights 0 and the logit of the (smoothed) prevalence: for a finding without positives or without negatives."""
    positives, negatives = np.count_nonzero(target == 1), np.count_nonzero(target == 0)
    return np.zeros(width), math.log((positives + 0.5) / (negatives + 0.5))


def is_constant(target: Array) -> bool:
    """Whether known labels have one value only."""
    return not ((target == 1).any() and (target == 0).any())


def fit_labels(train: TrainingSet, weights: Array, l2: float) -> LinearHead:
    """Weighted logistic regression of every finding on its known labels.

    Args:
        train: the training images.
        weights: of the images [images], or of the labels [images, findings]; not negative.
        l2: see `logistic`.
    """
    heads = []
    for index, target in enumerate(train.targets.T):
        weight = weights if weights.ndim == 1 else weights[:, index]
        known = ~np.isnan(target) & (weight > 0)
        heads.append(logistic(train.features[known], target[known], weight[known], l2))
    return stack(heads)


def logistic(features: Array, target: Array, weights: Array, l2: float) -> tuple[Array, float]:
    """Minimise Σ weight × BCE / Σ weight + ½ l2 |w|² by Newton's method; the bias is not penalised.

    Args:
        features: float64 [images, width].
        target: 1 or 0 [images].
        weights: positive [images].
        l2: weight of the penalty.

    Returns:
        Weights [width] and bias. With one value only in `target`: see `constant`.
    """
    width = features.shape[1]
    if is_constant(target):
        return constant(target, width)
    inputs = np.column_stack([features, np.ones(len(features))])
    share = weights / weights.sum()
    penalty = np.append(np.full(width, l2), 0.0)
    mean = float(share @ target)
    head = np.append(np.zeros(width), math.log(mean / (1 - mean)))
    value = _objective(inputs, target, share, penalty, head)
    for _ in range(ITERATIONS):
        p = expit(inputs @ head)
        gradient = inputs.T @ (share * (p - target)) + penalty * head
        if np.abs(gradient).max() < TOLERANCE:
            break
        curvature = (inputs * (share * p * (1 - p))[:, None]).T @ inputs + np.diag(penalty)
        step = np.linalg.solve(curvature, gradient)
        after = _objective(inputs, target, share, penalty, head - step)
        for _ in range(HALVINGS):
            if after <= value + ROUNDING:
                break
            step = step / 2
            after = _objective(inputs, target, share, penalty, head - step)
        head, value = head - step, after
    return head[:-1], float(head[-1])


def _objective(inputs: Array, target: Array, share: Array, penalty: Array, head: Array) -> float:
    z = inputs @ head
    return float(share @ (np.logaddexp(0, z) - target * z) + 0.5 * penalty @ head**2)


def gradient_steps(
    train: TrainingSet, head: LinearHead, weights: Array, l2: float, *, steps: int, length: float = 1.0
) -> LinearHead:
    """Full-batch gradient steps of the objective of `fit_labels`, from a given head. Findings whose known labels
    have one value only stay as they are.

    Args:
        train: the training images.
        head: where to start.
        weights: of the labels [images, findings]; not negative.
        l2: weight of the penalty.
        steps: number of steps.
        length: step, as a fraction of 1 / the largest curvature, up to which the loss cannot rise.
    """
    share = label_shares(train.targets, weights)
    target = np.nan_to_num(train.targets)
    rate = length / curvature_bound(train.features, share, l2)
    rate[[is_constant(column) for column in train.targets.T]] = 0
    weight, bias = head.weight, head.bias
    for _ in range(steps):
        error = share * (expit(train.features @ weight.T + bias) - target)
        weight = weight - rate[:, None] * (error.T @ train.features + l2 * weight)
        bias = bias - rate * error.sum(axis=0)
    return LinearHead(weight, bias)


def label_shares(targets: Array, weights: Array) -> Array:
    """Weights of the labels, 0 where unknown, with sum 1 per finding (0 without a known label)."""
    known = np.where(np.isnan(targets), 0.0, weights)
    sums = known.sum(axis=0)
    shares: Array = known / np.where(sums > 0, sums, 1.0)
    return shares


def curvature_bound(features: Array, share: Array, l2: float) -> Array:
    """An upper bound of the curvature of each finding's objective [findings]: ¼ λ + l2, with λ the largest
    eigenvalue of Σ share (f, 1) (f, 1)ᵀ.

    Args:
        features: [images, width].
        share: of the labels [images, findings], see `label_shares`.
        l2: weight of the penalty.
    """
    inputs = np.column_stack([features, np.ones(len(features))])
    columns, of_finding = np.unique(share, axis=1, return_inverse=True)  # equal where all labels are known
    largest = [np.linalg.eigvalsh((inputs * column[:, None]).T @ inputs)[-1] for column in columns.T]
    bound: Array = 0.25 * np.array(largest)[of_finding.ravel()] + l2
    return bound
