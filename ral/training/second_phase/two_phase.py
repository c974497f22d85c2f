"""Two-phase training: fit on capped data, then some steps on all data (Buda, Maki and Mazurowski, 2018)."""

import numpy as np

from ral.config.second_phase import TwoPhaseOptions
from ral.training.second_phase import undersample
from ral.training.second_phase.base import LinearHead, TrainingSet, gradient_steps


def fit(options: TwoPhaseOptions, train: TrainingSet, seed: int) -> LinearHead:
    """The undersampled head after `options.steps` gradient steps on all training images."""
    head = undersample.fit(options, train, seed)
    return gradient_steps(train, head, np.ones_like(train.targets), options.l2, steps=options.steps)
