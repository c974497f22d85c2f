"""Features and labels of all splits, and the fit of a head on the training images among them."""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import numpy as np

from ral.training.second_phase.base import Array, LinearHead, TrainingSet

Options = TypeVar("Options")


class Bank(NamedTuple):
    """Stored features and labels of the images of all splits."""

    features: Array
    """float [images, width]."""
    targets: Array
    """[images, findings]: 1, 0, NaN where unknown."""
    patients: Array
    """Patient ids [images]."""
    split: Array
    """Name of each image's split [images]."""
    uncertain: Array | None = None
    """Whether the reader called the finding uncertain, bool [images, findings]; None: not recorded."""


def fit_bank(
    fit: Callable[[Options, TrainingSet, int], LinearHead], options: Options, bank: Bank, seed: int
) -> LinearHead:
    """The head that a method fits, for features as they are in the bank. Only images of the split train are read.

    Args:
        fit: the method; its training set has standardised features.
        options: of the method.
        bank: features and labels.
        seed: of the method.

    Raises:
        ValueError: no training image, or a patient has images in train and in another split.
    """
    train = bank.split == "train"
    if not train.any():
        raise ValueError("the bank has no image in the split train")
    shared = np.intersect1d(bank.patients[train], bank.patients[~train])
    if len(shared):
        raise ValueError(f"{len(shared)} patients have images in train and in another split")
    features = np.asarray(bank.features[train], np.float64)
    mean, sd = features.mean(axis=0), features.std(axis=0)
    sd[sd <= 1e-12 * np.abs(mean)] = np.inf  # a constant feature says nothing; its weight is 0
    training_set = TrainingSet(
        features=(features - mean) / sd,
        targets=np.asarray(bank.targets[train], np.float64),
        patients=np.unique(bank.patients[train], return_inverse=True)[1],
        uncertain=None if bank.uncertain is None else bank.uncertain[train],
    )
    head = fit(options, training_set, seed)
    weight = head.weight / sd
    return LinearHead(weight, head.bias - weight @ mean)
