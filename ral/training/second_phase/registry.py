"""The registry of the second-phase methods."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

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
from ral.training.second_phase.bank import Bank, fit_bank
from ral.training.second_phase.base import LinearHead, TrainingSet


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


@dataclass(frozen=True)
class SecondPhase:
    """A method with its options."""

    name: str
    options: SecondPhaseOptions

    def fit(self, bank: Bank, seed: int) -> LinearHead:
        """The refitted head, for features as they are in the bank; see `fit_bank`.

        Raises:
            ValueError: see `fit_bank`.
            UserError: the method needs labels that the bank does not have.
        """
        return fit_bank(METHODS[self.name].fit, self.options, bank, seed)


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
