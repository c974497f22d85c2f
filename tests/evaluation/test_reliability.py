"""Calibration errors against direct sums, and their debiasing against simulation."""

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import binomtest
from sklearn.metrics import brier_score_loss, log_loss

from ral.evaluation.bootstrap import draw
from ral.evaluation.reliability import bin_index, curve, errors

IDS = np.char.add("p", (np.arange(1000) // 2).astype(str))


def sample(seed: int, rows: int = 1000) -> tuple[np.ndarray, np.ndarray]:
    """Scores that are the true probabilities."""
    generator = np.random.default_rng(seed)
    scores = expit(generator.normal(-2, 1, size=rows))
    return scores, (generator.random(rows) < scores).astype(float)


def plain_ece(scores: np.ndarray, labels: np.ndarray, bin_of: np.ndarray) -> float:
    parts = [(bin_of == number) for number in np.unique(bin_of)]
    return sum(part.mean() * abs(scores[part].mean() - labels[part].mean()) for part in parts)


def test_errors_are_those_of_their_definitions_in_every_resample() -> None:
    scores, labels = sample(0)
    resamples = draw(IDS, 5, seed=1)
    result = errors(scores, labels, resamples, bins=10)
    bin_of = bin_index(scores, 10)
    assert set(np.bincount(bin_of)) == {100}
    for column in range(6):
        again = np.repeat(np.arange(1000), resamples.weights[resamples.patient, column])
        assert result["brier"].values[column] == pytest.approx(
            brier_score_loss(labels[again], scores[again]), abs=1e-12
        )
        assert result["log_loss"].values[column] == pytest.approx(
            log_loss(labels[again], scores[again]), abs=1e-12
        )
    assert result["ece"].values[0] == pytest.approx(plain_ece(scores, labels, bin_of), abs=1e-12)
    assert result["ece"].values[1:].mean() == pytest.approx(result["ece"].values[0], abs=1e-12)


def test_ties_share_a_bin() -> None:
    bin_of = bin_index(np.repeat([0.1, 0.2, 0.9], [500, 3, 497]), 15)
    assert len(set(bin_of[:500])) == len(set(bin_of[503:])) == 1
    assert bin_of.max() < 15
    assert bin_index(np.full(9, 0.3), 15).max() < 15


def test_debiasing_takes_off_what_chance_adds() -> None:
    """Of perfectly calibrated scores the plain error is chance alone; of biased ones the debiased is nearer
    the truth.
    """
    plain, debiased, shifted = [], [], []
    for seed in range(40):
        scores, labels = sample(seed)
        resamples = draw(IDS, 2, seed)
        result = errors(scores, labels, resamples, bins=15)
        plain.append(result["ece"].values[0])
        debiased.append(result["ece_debiased"].values[0])
        shifted.append(errors(scores + 0.1, labels, resamples, bins=15)["ece_debiased"].values[0])
    assert np.mean(debiased) < 0.65 * np.mean(plain)
    assert np.mean(shifted) == pytest.approx(0.1, abs=0.005)


def test_curve_has_a_row_per_bin_with_an_interval_about_the_observed_share() -> None:
    scores, labels = sample(3)
    table = curve(scores, labels, draw(IDS, 500, seed=4), bins=10)
    assert list(table["images"]) == [100] * 10
    assert table["positives"].sum() == labels.sum()
    assert (table["mean_score"].diff().dropna() > 0).all()
    assert (table["low"] < table["observed"]).all()
    assert (table["observed"] < table["high"]).all()
    holds = (table["low"] <= table["mean_score"]) & (table["mean_score"] <= table["high"])
    assert holds.mean() >= 0.8


def test_a_bin_without_positives_has_the_exact_end() -> None:
    table = curve(np.linspace(0.01, 0.99, 1000), np.repeat([0.0, 1.0], 500), draw(IDS, 100, seed=5), bins=4)
    assert list(table["observed"]) == [0, 0, 1, 1]
    exact = binomtest(0, 125).proportion_ci().high  # 250 images of 125 patients
    assert list(table["low"]) == pytest.approx([0, 0, 1 - exact, 1 - exact], abs=1e-6)
    assert list(table["high"]) == pytest.approx([exact, exact, 1, 1], abs=1e-6)


def test_ece_reaches_down_by_what_chance_may_have_added_and_the_debiased_one_has_no_interval() -> None:
    """Scores that are right: the population's error is 0, that of every sample is not."""
    scores, labels = sample(6)
    resamples = draw(IDS, 500, seed=7)
    result = errors(scores, labels, resamples, bins=15)
    plain, debiased = resamples.interval(result["ece"]), resamples.interval(result["ece_debiased"])
    assert plain.value is not None
    assert plain.low is not None
    assert plain.value > 0.02
    assert plain.low < 0.002
    assert debiased.value is not None
    assert debiased.low is debiased.high is None
