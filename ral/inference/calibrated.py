"""Probabilities and decisions of raw logits, by the calibration maps and thresholds that evaluate fitted on validation.

The same numbers as `ral.evaluation.calibration_io.apply`, for all findings at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from ral.errors import UserError
from ral.evaluation.calibration import MIN_SCORE, Map
from ral.evaluation.calibration_io import REMEDY, read

Array = NDArray[Any]


@dataclass(frozen=True)
class Calibration:
    """The maps and thresholds of a model, in the order of its findings."""

    maps: tuple[Map | None, ...]
    """None for a finding without a positive or without a negative validation image: it has no probability."""
    thresholds: Array
    """Of the probabilities, float64 [findings]; NaN without a map."""
    rule: str
    """The rule that chose the thresholds: max_f1, sensitivity, cost or prevalence."""
    version: str
    """Digest of maps and thresholds."""

    def probabilities(self, logits: Array) -> Array:
        """Calibrated probabilities float64 [images, findings] of raw logits; NaN for a finding without a map."""
        logits = logits.astype(np.float64)
        scores = np.full(logits.shape, np.nan)
        columns = [i for i, item in enumerate(self.maps) if item is not None and item.kind != "isotonic"]
        if columns:
            a, b, c = np.array([_numbers(self.maps[i]) for i in columns]).T
            x = logits[:, columns]
            # log s and -log(1 - s) of s = sigmoid(logit), as `ral.evaluation.calibration` computes them.
            rising, falling = -np.logaddexp(0, -x), np.logaddexp(0, x)
            scores[:, columns] = np.clip(expit(a * rising + b * falling + c), MIN_SCORE, 1 - MIN_SCORE)
        for index, item in enumerate(self.maps):
            if item is not None and item.kind == "isotonic":
                scores[:, index] = item.apply(logits[:, index])
        return scores


def _numbers(item: Map | None) -> tuple[float, ...]:
    assert item is not None
    return item.numbers


def read_calibration(path: Path, findings: Sequence[str]) -> Calibration:
    """Read a calibration.json for a model.

    Args:
        path: written by the step evaluate.
        findings: of the model, in order.

    Raises:
        UserError: the file is missing, damaged or of another model.
    """
    saved = read(path)
    if sorted(saved.findings) != sorted(findings):
        raise UserError(
            f"{path} is of a model with the findings {', '.join(sorted(saved.findings))}, but this one has "
            f"{', '.join(sorted(findings))}. Run evaluate again."
        )
    entries = [saved.findings[name] for name in findings]
    maps = tuple(None if entry is None else entry.map for entry in entries)
    try:
        thresholds = [np.nan if entry is None else entry.thresholds[saved.rule] for entry in entries]
    except KeyError:
        raise UserError(
            f"{path} has a finding without a threshold of its rule {saved.rule}. {REMEDY}"
        ) from None
    return Calibration(maps, np.array(thresholds), saved.rule, saved.version)


def combine(scores: Sequence[Array]) -> Array:
    """Combine the probabilities, or the thresholds, of several models: the mean of their calibrated logits.

    With one model, they are its own. The threshold of a combination was not chosen on validation images, unlike that of
    a single model. A threshold of 1 (predict none) of one model is one of the combination.

    Args:
        scores: of each model, float64 of equal shape; NaN for a finding without a map.
    """
    if len(scores) == 1:
        return scores[0]
    return np.asarray(expit(np.mean([logit(score) for score in scores], axis=0)))
