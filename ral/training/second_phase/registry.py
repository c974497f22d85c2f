"""The registry of the second-phase methods."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ral.config.second_phase import SECOND_PHASE_OPTIONS, SecondPhaseMethod, SecondPhaseOptions
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

METHODS: dict[SecondPhaseMethod, Callable[[Any, TrainingSet, int], LinearHead]] = {
    "crt": crt.fit,
    "undersample": undersample.fit,
    "oversample": oversample.fit,
    "two_phase": two_phase.fit,
    "smote": smote.fit,
    "virtual": virtual.fit,
    "rcal": rcal.fit,
    "storm": storm.fit,
    "presto": presto.fit,
}
"""Functions (options, training set, seed) that fit the head; the options are of the class in `SECOND_PHASE_OPTIONS`."""


@dataclass(frozen=True)
class SecondPhase:
    """A method with its options."""

    name: SecondPhaseMethod
    options: SecondPhaseOptions

    def fit(self, bank: Bank, seed: int) -> LinearHead:
        """The refitted head, for features as they are in the bank; see `fit_bank`.

        Raises:
            ValueError: see `fit_bank`.
            UserError: the method needs labels that the bank does not have.
        """
        return fit_bank(METHODS[self.name], self.options, bank, seed)


def build_second_phase(name: str, options: Mapping[str, Any] | None = None) -> SecondPhase:
    """The method called `name`.

    Args:
        name: a key of `METHODS`.
        options: options by name; the others have the defaults of the options class.

    Raises:
        ValueError: unknown method (the message lists the valid ones), or an unknown or wrong option.
    """
    for method, fields in SECOND_PHASE_OPTIONS.items():
        if method == name:
            return SecondPhase(method, fields.model_validate(dict(options or {})))
    raise ValueError(
        f"unknown second phase `{name}`.{did_you_mean(name, METHODS)} Methods: {', '.join(METHODS)}."
    )
