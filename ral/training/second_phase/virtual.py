"""Virtual features: a Gaussian of each finding's positives and one of its negatives (LMD, arXiv 2502.03238)."""

from dataclasses import dataclass

import numpy as np
from sklearn.covariance import ledoit_wolf

from ral.config.second_phase import VirtualOptions
from ral.training.second_phase.base import (
    Array,
    LinearHead,
    TrainingSet,
    constant,
    is_constant,
    logistic,
    stack,
)


@dataclass(frozen=True)
class Gaussian:
    """Mean [width] and covariance [width, width]."""

    mean: Array
    covariance: Array


def fit(options: VirtualOptions, train: TrainingSet, seed: int) -> LinearHead:
    """The head that separates the Gaussians of each finding."""
    heads = []
    for index, target in enumerate(train.targets.T):
        if is_constant(target):
            heads.append(constant(target, train.features.shape[1]))
            continue
        pair = gaussians(train.features[target == 1], train.features[target == 0], options)
        heads.append(separate(*pair, options, np.random.default_rng([seed, index])))
    return stack(heads)


def gaussians(positives: Array, negatives: Array, options: VirtualOptions) -> tuple[Gaussian, Gaussian]:
    """The Gaussians of a finding's positives and negatives, from their features [images, width]."""
    means = positives.mean(axis=0), negatives.mean(axis=0)
    residuals = [group - mean for group, mean in zip((positives, negatives), means, strict=True)]
    if options.covariance == "shared":
        shared = covariance(np.concatenate(residuals), 2, options.ridge)
        return Gaussian(means[0], shared), Gaussian(means[1], shared)
    own = [covariance(group, 1, options.ridge) for group in residuals]
    return Gaussian(means[0], own[0]), Gaussian(means[1], own[1])


def covariance(residuals: Array, means: int, ridge: float | None) -> Array:
    """Covariance of residuals [images, width] around `means` estimated means.

    With `ridge`, the unbiased sample covariance plus `ridge` on the diagonal; otherwise Ledoit-Wolf shrinkage.
    """
    if ridge is None:
        shrunk: Array = ledoit_wolf(residuals, assume_centered=True)[0]
        return shrunk
    freedom = max(len(residuals) - means, 1)
    return residuals.T @ residuals / freedom + ridge * np.eye(residuals.shape[1])


def separate(
    positive: Gaussian, negative: Gaussian, options: VirtualOptions, rng: np.random.Generator
) -> tuple[Array, float]:
    """Weights [width] and bias that separate two Gaussians with equal priors.

    Without draws: linear discriminant analysis with the mean of the two covariances, which is the limit of
    infinitely many draws where they are equal.
    """
    if options.draws is None:
        mean_covariance = 0.5 * (positive.covariance + negative.covariance)
        weight = np.linalg.lstsq(mean_covariance, positive.mean - negative.mean)[0]
        return weight, float(-0.5 * weight @ (positive.mean + negative.mean))
    drawn = [_draw(gaussian, options.draws, rng) for gaussian in (positive, negative)]
    target = np.repeat([1.0, 0.0], options.draws)
    return logistic(np.concatenate(drawn), target, np.ones(len(target)), options.l2)


def _draw(gaussian: Gaussian, count: int, rng: np.random.Generator) -> Array:
    """Draws [count, width]; a singular covariance is allowed."""
    values, vectors = np.linalg.eigh(gaussian.covariance)
    scaled = vectors * np.sqrt(np.maximum(values, 0))
    drawn: Array = gaussian.mean + rng.standard_normal((count, len(values))) @ scaled.T
    return drawn
