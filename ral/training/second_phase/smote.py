"""SMOTE in feature space, per finding (Chawla et al., JAIR 2002). Pixels are never averaged: the mean of two
radiographs is not a radiograph.
"""

from functools import partial

import numpy as np

from ral.config.second_phase import SmoteOptions
from ral.training.second_phase.base import Array, LinearHead, TrainingSet
from ral.training.second_phase.oversample import fit_with

# Rows of the distance matrix that are in memory at a time.
CHUNK = 1024


def fit(options: SmoteOptions, train: TrainingSet, seed: int) -> LinearHead:
    """The head fitted on all labels and on synthetic positives."""
    return fit_with(options, train, seed, partial(between, options))


def between(
    options: SmoteOptions, features: Array, patients: Array, bases: Array, rng: np.random.Generator
) -> Array:
    """Synthetic features [bases, width]: from each base some way to one of its neighbours.

    Args:
        options: neighbours and step.
        features: of the positives of one finding, [positives, width].
        patients: their patients [positives].
        bases: indices of the positives to start from.
        rng: draws the neighbour and the length of the way.
    """
    others = neighbours(features, patients, options.neighbours)[bases]
    chosen = others[np.arange(len(bases)), rng.integers(0, others.shape[1], len(bases))]
    steps = rng.uniform(0, options.step, len(bases))
    synthetic: Array = features[bases] + steps[:, None] * (features[chosen] - features[bases])
    return synthetic


def neighbours(features: Array, patients: Array, count: int) -> Array:
    """The nearest images of other patients, int64 [images, count or fewer], nearest first.

    The images of one patient are nearly copies; a segment between them would add nothing. Where other patients
    have fewer images than `count`, the list is filled with the nearest; without another patient, with the image
    itself.

    Args:
        features: of the positives of one finding, [images, width].
        patients: their patients [images].
        count: neighbours per image.
    """
    images = len(features)
    count = min(count, images)
    nearest = np.empty((images, count), np.int64)
    lengths = (features**2).sum(axis=1)
    for start in range(0, images, CHUNK):
        rows = slice(start, min(start + CHUNK, images))
        distances = lengths[rows, None] + lengths - 2 * features[rows] @ features.T
        distances[patients[rows, None] == patients] = np.inf
        order = np.argsort(distances, axis=1, kind="stable")[:, :count]
        usable = np.isfinite(np.take_along_axis(distances, order, axis=1))
        first = np.where(usable[:, :1], order[:, :1], np.arange(images)[rows, None])
        nearest[rows] = np.where(usable, order, first)
    return nearest
