"""Thresholds: each rule against an exhaustive search."""

import numpy as np
import pytest
from sklearn.metrics import f1_score

from ral.config.evaluate import RULES, ThresholdConfig
from ral.evaluation.thresholds import PREDICT_NONE, choose, rounded_down

CONFIG = ThresholdConfig(rule="max_f1", sensitivity=0.8, miss_cost=5.0)


def sample(seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = (generator.random(60) < 0.3).astype(float)
    scores = np.round(1 / (1 + np.exp(-generator.normal(size=60) - labels)), 1)  # ties
    labels[::9] = np.nan
    return scores, labels


@pytest.mark.parametrize("seed", range(5))
def test_each_rule_takes_the_best_observed_score(seed: int) -> None:
    scores, labels = sample(seed)
    known = ~np.isnan(labels)
    truth, score = labels[known], scores[known]
    observed = np.unique(score)[::-1]
    result = choose(scores, labels, CONFIG)
    assert tuple(result) == RULES
    f1s = [f1_score(truth, score >= t) for t in observed]
    assert result["max_f1"] == next(
        t for t, f in zip(observed, f1s, strict=True) if f == pytest.approx(max(f1s), abs=1e-12)
    )
    assert result["sensitivity"] == max(t for t in observed if (score >= t)[truth == 1].mean() >= 0.8)
    costs = [5 * np.sum((score < t) & (truth == 1)) + np.sum((score >= t) & (truth == 0)) for t in observed]
    assert result["cost"] == observed[np.argmin(costs)]


def test_the_prevalence_has_the_highest_sensitivity_and_specificity_of_calibrated_scores() -> None:
    generator = np.random.default_rng(0)
    scores = generator.beta(0.4, 8, 200_000)
    labels = (generator.random(len(scores)) < scores).astype(float)
    labels[::10] = np.nan
    known = ~np.isnan(labels)
    found = choose(scores, labels, CONFIG)["prevalence"]
    assert found == rounded_down(float(labels[known].mean()))

    def youden(threshold: float) -> float:
        called = scores[known] >= threshold
        return called[labels[known] == 1].mean() - called[labels[known] == 0].mean()

    best = max(youden(threshold) for threshold in np.linspace(0.005, 0.3, 300))
    assert youden(found) > best - 0.003
    assert youden(0.5 * found) < best - 0.01
    assert youden(2 * found) < best - 0.01


def test_of_two_thresholds_with_the_same_f1_the_higher_is_taken() -> None:
    # 4 of 4 called, 2 right: 2*2/(4+2); 1 of 1 called and right: 2*1/(1+2). Both are 2/3.
    scores, labels = np.array([0.9, 0.8, 0.7, 0.6]), np.array([1.0, 0.0, 0.0, 1.0])
    assert choose(scores, labels, CONFIG)["max_f1"] == 0.9


def test_where_calling_costs_more_than_missing_nothing_is_called() -> None:
    scores, labels = np.array([0.9, 0.8, 0.1]), np.array([0.0, 0.0, 1.0])
    assert choose(scores, labels, CONFIG)["cost"] == 0.1  # 2 false alarms are cheaper than a miss at 5
    cheap = CONFIG.model_copy(update={"miss_cost": 1.5})
    assert choose(scores, labels, cheap)["cost"] == PREDICT_NONE


@pytest.mark.parametrize(
    "value", [0.9, -3.0546875, 1e-6, 0.123456789012345, -0.123456789012345, 7.6e-13, 0.0]
)
def test_rounding_down_has_twelve_digits_and_never_goes_up(value: float) -> None:
    result = rounded_down(value)
    assert result <= value
    assert result == pytest.approx(value, rel=1e-11)
    assert len(f"{abs(result):.15e}".split("e")[0].rstrip("0").replace(".", "")) <= 12
    assert rounded_down(result) == result


def test_without_a_positive_there_is_no_threshold() -> None:
    scores, labels = sample(0)
    assert choose(scores, 0 * labels, CONFIG) == {}
    assert choose(scores, np.full(60, np.nan), CONFIG) == {}
