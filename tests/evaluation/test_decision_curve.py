"""Net benefit against its formula, by hand and in every resample."""

import numpy as np
import pytest
from scipy.stats import binomtest

from ral.evaluation.bootstrap import draw
from ral.evaluation.decision_curve import COLUMNS, POINTS, curve, net_benefit, thresholds

AT = np.array([0.02, 0.2, 0.5, 0.8])
NAN = float("nan")


def ids(rows: int, images: int = 2) -> np.ndarray:
    return np.char.add("p", (np.arange(rows) // images).astype(str))


def sample(rows: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Calibrated scores of images of which a quarter have no label."""
    generator = np.random.default_rng(0)
    scores = generator.beta(1, 3, size=rows)
    labels = (generator.random(rows) < scores).astype(float)
    labels[::4] = NAN
    return scores, labels


def test_by_hand() -> None:
    """At 0.2, a false alarm costs a quarter: (2 − 1/4) / 5; at 0.5, as much as a true positive brings: (1 − 1) / 5."""
    scores = np.array([0.9, 0.2, 0.1, 0.6, 0.05, 0.95])
    labels = np.array([1.0, 1.0, 1.0, 0.0, 0.0, NAN])
    model, everything = net_benefit(scores, labels, np.array([0.2, 0.5]), draw(ids(6, 1), 3, seed=0))
    assert model[0] == pytest.approx([1.75 / 5, 0], abs=1e-15)
    assert everything[0] == pytest.approx([2.5 / 5, 1 / 5], abs=1e-15)


def test_a_perfect_score_has_the_prevalence_and_calling_all_has_its_formula() -> None:
    labels = np.repeat([1.0, 0.0], [30, 170])
    model, everything = net_benefit(np.where(labels == 1, 0.99, 0.01), labels, AT, draw(ids(200), 20, seed=1))
    assert model[0] == pytest.approx([0.15] * 4, abs=1e-15)
    assert everything[0] == pytest.approx(0.15 - 0.85 * AT / (1 - AT), abs=1e-12)


def test_calling_all_is_a_score_above_every_threshold_in_every_resample() -> None:
    _, labels = sample()
    model, everything = net_benefit(np.full(400, 0.9), labels, AT, draw(ids(400), 50, seed=2))
    np.testing.assert_array_equal(model, everything)


def test_each_resample_is_the_formula_on_its_images() -> None:
    scores, labels = sample()
    resamples = draw(ids(400), 10, seed=3)
    model, _ = net_benefit(scores, labels, AT, resamples)
    known = ~np.isnan(labels)
    for column in range(11):
        weight = resamples.weights[resamples.patient, column] * known
        for index, t in enumerate(AT):
            tp = weight[(scores >= t) & (labels == 1)].sum()
            fp = weight[(scores >= t) & (labels == 0)].sum()
            expected = tp / weight.sum() - fp / weight.sum() * t / (1 - t)
            assert model[column, index] == pytest.approx(expected, abs=1e-12)


def test_unknown_labels_do_not_count() -> None:
    scores, labels = sample()
    table = curve(scores, labels, AT, draw(ids(400), 100, seed=4))
    scores[np.isnan(labels)] = 0.999
    again = curve(scores, labels, AT, draw(ids(400), 100, seed=4))
    assert list(table.columns) == list(COLUMNS)
    assert list(table["images"]) == [300] * 4
    assert table.equals(again)


def test_intervals_hold_the_value_and_reach_beyond_resamples_that_are_all_alike() -> None:
    """No score reaches 0.8: the exact interval of 0 of the positives, and of 0 of the negatives, says what could be."""
    scores, labels = sample()
    labels[np.isnan(labels)] = 0.0
    resamples = draw(ids(400, 1), 300, seed=5, method="bca")
    table = curve(np.minimum(scores, 0.7), labels, AT, resamples)
    assert (table["low"] < table["net_benefit"]).all()
    assert (table["high"] > table["net_benefit"]).all()
    positives = int(labels.sum())
    high = binomtest(0, positives).proportion_ci().high * positives / 400
    low = -4 * binomtest(0, 400 - positives).proportion_ci().high * (400 - positives) / 400
    assert table.loc[3, "net_benefit"] == 0
    assert (table.loc[3, "low"], table.loc[3, "high"]) == pytest.approx((low, high), rel=1e-6)


def test_no_interval_with_fewer_than_five_patients_with_the_finding() -> None:
    labels = np.repeat([1.0, 0.0], [4, 96])
    table = curve(np.linspace(0.9, 0.1, 100), labels, AT, draw(ids(100, 1), 50, seed=7))
    assert table[["low", "high"]].isna().all(axis=None)
    assert table["net_benefit"].notna().all()


def test_intervals_hold_the_truth() -> None:
    """Scores that are the probabilities: at t, the net benefit is the mean of (score − (1 − score) t/(1 − t))
    above t.
    """
    many = np.random.default_rng(6).beta(1, 3, size=1_000_000)
    truth = [np.mean((many - (1 - many) * t / (1 - t)) * (many >= t)) for t in AT[:3]]
    held = np.zeros(3)
    for seed in range(60):
        generator = np.random.default_rng(seed)
        scores = generator.beta(1, 3, size=300)
        labels = (generator.random(300) < scores).astype(float)
        table = curve(scores, labels, AT[:3], draw(ids(300), 300, seed, method="bca"))
        held += (table["low"] <= truth) & (truth <= table["high"])
    assert held.sum() >= 0.9 * 180


@pytest.mark.parametrize(
    ("prevalence", "first", "last"),
    [(0.0, 0.002, 0.05), (0.01, 0.002, 0.05), (0.0301, 0.008, 0.2), (0.1, 0.02, 0.5), (0.7, 0.02, 0.5)],
)
def test_thresholds_follow_the_prevalence(prevalence: float, first: float, last: float) -> None:
    at = thresholds(prevalence)
    assert (at[0], at[-1], len(at)) == (first, last, POINTS)
    assert (np.diff(at) > 0).all()
