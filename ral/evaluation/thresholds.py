"""From which calibrated score on an image is called positive: chosen on validation, applied on test."""

from decimal import ROUND_FLOOR, Context
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ral.config.evaluate import RULES, Rule, ThresholdConfig
from ral.evaluation.metrics import cuts, f1

Array = NDArray[Any]

# No calibrated score reaches it: no image is called.
CALL_NONE = 1.0


# Significant digits of a threshold: what reads them back, in whatever way, gets no number above the score.
DIGITS = Context(prec=12, rounding=ROUND_FLOOR)


def rounded_down(value: float) -> float:
    """The number with twelve digits that is nearest below: no image at or above `value` is lost by writing it."""
    return float(DIGITS.create_decimal(repr(value)))


def choose(scores: Array, labels: Array, config: ThresholdConfig) -> dict[Rule, float]:
    """The threshold of each rule, an observed score, rounded down; of several that do as well, the highest.

    max_f1: highest F1. sensitivity: the highest threshold with at least `config.sensitivity`. cost: least
    `config.miss_cost` × misses + false alarms, which may be to call no image at all (`CALL_NONE`).

    Args:
        scores: calibrated validation scores [rows].
        labels: 1, 0 or NaN [rows].
        config: what sensitivity is wanted, and what a miss costs.

    Returns:
        Empty without a positive.
    """
    cut = cuts(scores, labels)
    positives = int((labels == 1).sum())
    if positives == 0:
        return {}
    true, false = cut.true_positives, cut.false_positives
    enough = true >= (config.sensitivity - 1e-12) * positives
    cost = config.miss_cost * (positives - true) + false
    # argmax and argmin take the first, and the cuts fall.
    places = {
        "max_f1": np.argmax(f1(true, false, np.full(len(true), positives))),
        "sensitivity": np.argmax(enough),
        "cost": np.argmin(cost),
    }
    found = {rule: rounded_down(float(cut.thresholds[places[rule]])) for rule in RULES}
    if config.miss_cost * positives <= cost.min():
        found["cost"] = CALL_NONE
    return found
