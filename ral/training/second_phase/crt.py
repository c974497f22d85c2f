"""cRT: refit on the images that a balanced sampler draws (Kang et al., ICLR 2020)."""

import numpy as np

from ral.config.second_phase import CRTOptions
from ral.training.samplers import epoch_rows
from ral.training.second_phase.base import Array, LinearHead, TrainingSet, fit_labels


def fit(options: CRTOptions, train: TrainingSet, seed: int) -> LinearHead:
    """The head that minimises the loss over the drawn images, not the state after a number of steps."""
    return fit_labels(train, draws(options, train, seed), options.l2)


def draws(options: CRTOptions, train: TrainingSet, seed: int) -> Array:
    """How often the sampler draws each image in all epochs together, float64 [images]."""
    images = len(train.targets)
    counts = np.zeros(images)
    for epoch in range(options.epochs):
        rows = epoch_rows(
            options.sampler,
            train.targets.astype(np.float32),
            np.arange(images),
            seed,
            epoch,
            options.epochs,
        )
        counts += np.bincount(rows, minlength=images)
    return counts
