"""Second phase on stored features: methods that refit the linear classifier, and their registry."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ral.config.second_phase import (
    CRTOptions,
    OversampleOptions,
    PrestoOptions,
    RCALOptions,
    SecondPhaseOptions,
    SmoteOptions,
    StormOptions,
    TwoPhaseOptions,
    UndersampleOptions,
    VirtualOptions,
)
from ral.suggest import did_you_mean
from ral.training.second_phase import (
    crt,
    oversample,
    presto,
    rcal,
    smote,
    storm,
    two_phase,
    undersample,
    virtual,
)
from ral.training.second_phase.base import Array, LinearHead, TrainingSet


class Method(NamedTuple):
    """A method: the class of its options, and the function (options, training set, seed) that fits the head."""

    options: type[SecondPhaseOptions]
    fit: Callable[[Any, TrainingSet, int], LinearHead]


METHODS: dict[str, Method] = {
    "crt": Method(CRTOptions, crt.fit),
    "undersample": Method(UndersampleOptions, undersample.fit),
    "oversample": Method(OversampleOptions, oversample.fit),
    "two_phase": Method(TwoPhaseOptions, two_phase.fit),
    "smote": Method(SmoteOptions, smote.fit),
    "virtual": Method(VirtualOptions, virtual.fit),
    "rcal": Method(RCALOptions, rcal.fit),
    "storm": Method(StormOptions, storm.fit),
    "presto": Method(PrestoOptions, presto.fit),
}


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


@dataclass(frozen=True)
class SecondPhase:
    """A method with its options."""

    name: str
    options: SecondPhaseOptions

    def fit(self, bank: Bank, seed: int) -> LinearHead:
        """The refitted head, for features as they are in the bank. Only images of the split train are read.

        Raises:
            ValueError: no training image, or a patient has images in train and in another split.
            UserError: the method needs labels that the bank does not have.
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
        head = METHODS[self.name].fit(self.options, training_set, seed)
        weight = head.weight / sd
        return LinearHead(weight, head.bias - weight @ mean)


def build_second_phase(name: str, options: Mapping[str, Any] | None = None) -> SecondPhase:
    """The method called `name`.

    Args:
        name: a key of `METHODS`.
        options: options by name; the others have the defaults of the options class.

    Raises:
        ValueError: unknown method (the message lists the valid ones), or an unknown or wrong option.
    """
    if name not in METHODS:
        raise ValueError(
            f"unknown second phase `{name}`.{did_you_mean(name, METHODS)} Methods: {', '.join(METHODS)}."
        )
    return SecondPhase(name, METHODS[name].options.model_validate(dict(options or {})))


__all__ = ["METHODS", "Bank", "LinearHead", "SecondPhase", "build_second_phase"]
