"""Resampling of patients: what a weight means, and that the draw is reproducible."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from ral.evaluation.bootstrap import interval, patient_weights
from ral.evaluation.metrics import auroc_and_ap

PATIENTS = np.array([f"p{number:02d}" for number in np.random.default_rng(0).integers(30, size=100)])


def test_the_rows_of_a_patient_come_together() -> None:
    weights = patient_weights(PATIENTS, replicates=50, seed=1)
    assert weights.shape == (50, 100)
    assert weights.dtype == np.uint16
    for name in np.unique(PATIENTS):
        own = weights[:, name == PATIENTS]
        assert (own == own[:, :1]).all()


def test_each_replicate_draws_as_many_patients_as_there_are() -> None:
    names, first = np.unique(PATIENTS, return_index=True)
    weights = patient_weights(PATIENTS, replicates=2000, seed=1)[:, first]
    assert (weights.sum(axis=1) == len(names)).all()
    # Drawn with replacement: a patient is absent with a chance of (1 - 1/P)^P.
    assert (weights == 0).mean() == pytest.approx((1 - 1 / len(names)) ** len(names), abs=0.01)


def test_weighting_equals_writing_the_rows_of_a_drawn_patient_again() -> None:
    generator = np.random.default_rng(2)
    labels = (generator.random(100) < 0.3).astype(float)
    scores = np.round(generator.normal(size=100) + labels, 1)
    weights = patient_weights(PATIENTS, replicates=20, seed=3)
    aurocs, aps = auroc_and_ap(scores, labels, weights)
    for row, weight in enumerate(weights):
        again = np.repeat(np.arange(100), weight)
        assert aurocs[row] == pytest.approx(roc_auc_score(labels[again], scores[again]), abs=1e-12)
        assert aps[row] == pytest.approx(average_precision_score(labels[again], scores[again]), abs=1e-12)


def test_the_draw_follows_the_patients_and_the_seed_only() -> None:
    weights = patient_weights(PATIENTS, 20, seed=1)
    np.testing.assert_array_equal(weights, patient_weights(PATIENTS, 20, seed=1))
    mixed = np.random.default_rng(4).permutation(100)
    np.testing.assert_array_equal(weights[:, mixed], patient_weights(PATIENTS[mixed], 20, seed=1))
    assert (weights != patient_weights(PATIENTS, 20, seed=2)).any()


def test_interval_is_the_percentiles_of_the_finite_values() -> None:
    values = np.append(np.arange(101.0), [np.nan, np.nan])
    assert interval(values, 0.9) == pytest.approx((5, 95))
    assert interval(values, 0.5) == pytest.approx((25, 75))


def test_interval_of_nothing_finite_is_nan() -> None:
    assert np.isnan(interval(np.array([np.nan]), 0.9)).all()
