"""RCAL: Gaussians without outliers, and rare findings that borrow from frequent ones (arXiv 2211.10955)."""

import numpy as np

from ral.config.second_phase import RCALOptions
from ral.explain.outliers import OUTLIER, local_outlier_factor
from ral.training.second_phase.base import Array, LinearHead, TrainingSet, constant, is_constant, stack
from ral.training.second_phase.virtual import Gaussian, gaussians, separate


def fit(options: RCALOptions, train: TrainingSet, seed: int) -> LinearHead:
    """The head that separates the calibrated Gaussians of each finding."""
    width = train.features.shape[1]
    pairs: list[tuple[Gaussian, Gaussian] | None] = []
    counts = []
    for target in train.targets.T:
        positives = train.features[target == 1]
        counts.append(len(positives))
        if is_constant(target):
            pairs.append(None)
            continue
        if options.outliers:
            positives = positives[local_outlier_factor(positives, options.lof_neighbours) <= OUTLIER]
        pairs.append(gaussians(positives, train.features[target == 0], options))
    frequent = [
        pair[0]
        for pair, count in zip(pairs, counts, strict=True)
        if pair is not None and count >= options.rare
    ]
    heads = []
    for index, (pair, count) in enumerate(zip(pairs, counts, strict=True)):
        if pair is None:
            heads.append(constant(train.targets[:, index], width))
            continue
        positive = borrowed(pair[0], frequent, options) if count < options.rare else pair[0]
        heads.append(separate(positive, pair[1], options, np.random.default_rng([seed, index])))
    return stack(heads)


def borrowed(own: Gaussian, frequent: list[Gaussian], options: RCALOptions) -> Gaussian:
    """A rare finding's Gaussian, mixed with the nearest of the frequent findings' (Euclidean distance of means).

    The paper's coefficients were not available: the weights within the borrowed part are equal here.
    """
    if options.borrow == 0 or not frequent:
        return own
    distances = [float(np.linalg.norm(other.mean - own.mean)) for other in frequent]
    nearest = [frequent[index] for index in np.argsort(distances, kind="stable")[: options.borrow]]
    mean: Array = np.mean([other.mean for other in nearest], axis=0)
    covariance: Array = np.mean([other.covariance for other in nearest], axis=0)
    return Gaussian(
        options.own * own.mean + (1 - options.own) * mean,
        options.own * own.covariance + (1 - options.own) * covariance + options.widen * np.eye(len(mean)),
    )
