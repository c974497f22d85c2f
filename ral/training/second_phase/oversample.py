"""Random oversampling of positives, per finding (Buda, Maki and Mazurowski, Neural Networks 2018)."""

from collections.abc import Callable

import numpy as np

from ral.config.second_phase import OversampleOptions
from ral.training.second_phase.base import Array, LinearHead, TrainingSet, logistic, stack

# (positive features [positives, width], their patients, indices of the bases, generator) -> features [bases, width]
Synthesis = Callable[[Array, Array, Array, np.random.Generator], Array]


def fit(options: OversampleOptions, train: TrainingSet, seed: int) -> LinearHead:
    """The head fitted on all labels and on repeated positives."""
    return fit_with(options, train, seed, lambda features, _patients, bases, _rng: features[bases])


def fit_with(options: OversampleOptions, train: TrainingSet, seed: int, synthesis: Synthesis) -> LinearHead:
    """The head fitted on all labels and on further positives that `synthesis` makes from drawn positives.

    Findings are independent of each other: a linear sigmoid head has no weight that two of them share.
    """
    heads = []
    for index, target in enumerate(train.targets.T):
        positives, negatives = np.flatnonzero(target == 1), np.flatnonzero(target == 0)
        known = np.concatenate([positives, negatives])
        rng = np.random.default_rng([seed, index])
        bases = further(len(positives), len(negatives), options.ratio, rng)
        features, labels = train.features[known], target[known]
        if len(bases):
            made = synthesis(train.features[positives], train.patients[positives], bases, rng)
            features, labels = np.concatenate([features, made]), np.append(labels, np.ones(len(bases)))
        heads.append(logistic(features, labels, np.ones(len(labels)), options.l2))
    return stack(heads)


def further(positives: int, negatives: int, ratio: float, rng: np.random.Generator) -> Array:
    """Indices of the positives to repeat until there are `ratio` × `negatives`: int64; none is repeated once
    more before all others were.
    """
    count = max(round(ratio * negatives) - positives, 0) if positives else 0
    if count == 0:
        return np.empty(0, np.int64)
    rounds = -(-count // positives)
    drawn: Array = rng.permuted(np.tile(np.arange(positives), (rounds, 1)), axis=1).ravel()[:count]
    return drawn
