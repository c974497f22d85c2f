"""Thresholds of the calibrated scores, chosen on validation and applied on test."""

from decimal import ROUND_FLOOR, Context
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ral.config.evaluate import RULES, Rule, ThresholdConfig
from ral.evaluation.metrics import cuts, f1

Array = NDArray[Any]

# Above all calibrated scores: no image is predicted positive.
PREDICT_NONE = 1.0


# Rounding of a threshold to significant digits; the rounded number is never above the score.
DIGITS = Context(prec=12, rounding=ROUND_FLOOR)


def rounded_down(value: float) -> float:
    """Round down to twelve significant digits, so that every score at or above `value` still passes."""
    return float(DIGITS.create_decimal(repr(value)))


def choose(scores: Array, labels: Array, config: ThresholdConfig) -> dict[Rule, float]:
    """The threshold of each rule: an observed score, rounded down; the highest among equally good ones.

    max_f1: highest F1. sensitivity: the highest threshold with at least `config.sensitivity`. cost: minimizes
    `config.miss_cost` × misses + false alarms; the minimum may be to predict no image positive (`PREDICT_NONE`).
    prevalence: no observed score, but the share of positives among the known labels, rounded down. Calibrated scores
    above it are where sensitivity + specificity still rises (Buda, Maki and Mazurowski, Neural Networks 2018).

    Args:
        scores: calibrated validation scores [rows].
        labels: 1, 0 or NaN [rows].
        config: required sensitivity and cost of a miss.

    Returns:
        Empty without a positive.
    """
    cut = cuts(scores, labels)
    positives = int((labels == 1).sum())
    if positives == 0:
        return {}
    true, false = cut.true_positives, cut.false_positives
    is_sensitive = true >= (config.sensitivity - 1e-12) * positives
    cost = config.miss_cost * (positives - true) + false
    # argmax and argmin return the first index; the cuts are in descending order.
    indices = {
        "max_f1": np.argmax(f1(true, false, np.full(len(true), positives))),
        "sensitivity": np.argmax(is_sensitive),
        "cost": np.argmin(cost),
    }
    chosen = {rule: float(cut.thresholds[index]) for rule, index in indices.items()}
    if config.miss_cost * positives <= cost.min():
        chosen["cost"] = PREDICT_NONE
    chosen["prevalence"] = positives / int(np.count_nonzero(~np.isnan(labels)))
    return {rule: rounded_down(chosen[rule]) for rule in RULES}
