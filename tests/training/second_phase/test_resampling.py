"""The fit itself, cRT, under- and oversampling, two phases and SMOTE: limit cases and values by hand."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

from ral.config.sampler import SamplerConfig
from ral.config.second_phase import (
    CRTOptions,
    OversampleOptions,
    SmoteOptions,
    TwoPhaseOptions,
    UndersampleOptions,
)
from ral.training.second_phase import crt, oversample, smote, two_phase, undersample
from ral.training.second_phase.base import LinearHead, TrainingSet, fit_labels, gradient_steps, logistic


def toy(images: int = 400, per_patient: int = 2, width: int = 3) -> TrainingSet:
    """Two findings (30 % and 5 %), 10 % of the labels unknown."""
    rng = np.random.default_rng(1)
    features = rng.normal(size=(images, width))
    logits = features[:, :2] * [1.5, 2.0] - [1.2, 4.0]
    targets = (rng.random(logits.shape) < expit(logits)).astype(float)
    targets[rng.random(targets.shape) < 0.1] = np.nan
    return TrainingSet(features, targets, np.arange(images) // per_patient)


def same(one: LinearHead, other: LinearHead, atol: float = 1e-9) -> None:
    np.testing.assert_allclose(one.weight, other.weight, rtol=0, atol=atol)
    np.testing.assert_allclose(one.bias, other.bias, rtol=0, atol=atol)


def plain(train: TrainingSet, l2: float = 1e-3) -> LinearHead:
    return fit_labels(train, np.ones(len(train.targets)), l2)


def test_the_fit_is_that_of_scikit_learn() -> None:
    train, l2 = toy(), 1e-2
    weights = np.random.default_rng(2).integers(0, 4, len(train.targets)).astype(float)
    head = fit_labels(train, weights, l2)
    for index, target in enumerate(train.targets.T):
        known = ~np.isnan(target)
        share = weights[known] / weights[known].sum()
        reference = LogisticRegression(C=1 / l2, tol=1e-10, max_iter=1000, solver="newton-cholesky")
        reference.fit(train.features[known], target[known], share)
        np.testing.assert_allclose(head.weight[index], reference.coef_[0], rtol=0, atol=1e-7)
        np.testing.assert_allclose(head.bias[index], reference.intercept_[0], rtol=0, atol=1e-7)


def test_the_fit_converges_on_separable_and_on_badly_scaled_features() -> None:
    features = np.array([[-1e3, 1.0], [-2e3, 1.0], [1e3, -1.0], [3e3, 2.0]])
    target, weights, l2 = np.array([0.0, 0, 1, 1]), np.array([1e-6, 1, 1, 1e4]), 1e-6
    weight, bias = logistic(features, target, weights, l2)
    share = weights / weights.sum()
    error = share * (expit(features @ weight + bias) - target)
    np.testing.assert_allclose(features.T @ error + l2 * weight, 0, atol=1e-9)
    np.testing.assert_allclose(error.sum(), 0, atol=1e-9)


def test_a_finding_with_one_label_value_gets_its_prevalence() -> None:
    weight, bias = logistic(np.ones((9, 2)), np.zeros(9), np.ones(9), 0.1)
    assert (weight == 0).all()
    assert bias == pytest.approx(np.log(0.5 / 9.5))


def test_crt_with_the_uniform_sampler_is_the_plain_fit() -> None:
    train = toy()
    options = CRTOptions(sampler=SamplerConfig(name="uniform"), epochs=3)
    same(crt.fit(options, train, 0), plain(train))


def test_crt_counts_what_the_sampler_draws() -> None:
    # Class-aware: a third of each epoch for finding 0 (2 images), finding 1 (1 image) and none (3 images).
    targets = np.array([[1, 0], [1, 0], [0, 1], [0, 0], [0, np.nan], [0, 0]])
    train = TrainingSet(np.zeros((6, 1)), targets, np.arange(6))
    assert crt.draws(CRTOptions(epochs=50), train, 0)[:3].tolist() == [50, 50, 100]


def test_undersampling_caps_findings_from_the_rarest_on() -> None:
    targets = np.zeros((100, 3))
    targets[:40, 0] = 1
    targets[35:45, 1] = 1  # five of them with finding 0
    targets[:3, 2] = 1  # all of them with finding 0
    keep = undersample.kept(targets, 2.0, seed=0)
    assert targets[keep].sum(axis=0)[1:].tolist() == [6, 3]
    # The three of finding 2 and those of finding 1 count towards finding 0's six.
    assert targets[keep, 0].sum() == max(6, 3 + keep[35:40].sum())
    assert keep[45:].sum() == 6
    assert (undersample.kept(targets, 2.0, seed=1) != keep).any()
    assert undersample.kept(targets, 1e6, seed=0).all()
    assert undersample.kept(0 * targets, 1.0, seed=0).all()


def test_undersampling_without_a_limit_is_the_plain_fit() -> None:
    train = toy()
    same(undersample.fit(UndersampleOptions(cap=1e6), train, 0), plain(train))


def test_two_phases_lie_between_undersampling_and_the_plain_fit() -> None:
    train = toy()
    capped = undersample.fit(UndersampleOptions(l2=0.01), train, 5)
    same(two_phase.fit(TwoPhaseOptions(steps=0, l2=0.01), train, 5), capped, 0)
    same(two_phase.fit(TwoPhaseOptions(steps=20_000, l2=0.01), train, 5), plain(train, 0.01), 1e-8)
    some = two_phase.fit(TwoPhaseOptions(steps=20, l2=0.01), train, 5)
    for index in range(2):
        ends = capped.bias[index], plain(train, 0.01).bias[index]
        assert min(ends) < some.bias[index] < max(ends)


def test_gradient_steps_never_raise_the_loss() -> None:
    train = toy()
    weights = np.random.default_rng(0).random(train.targets.shape)
    head = LinearHead(np.full((2, 3), 3.0), np.full(2, 3.0))
    known = ~np.isnan(train.targets)
    before = np.inf
    for _ in range(30):
        z = head.logits(train.features)
        losses = np.where(known, weights * (np.logaddexp(0, z) - np.nan_to_num(train.targets) * z), 0)
        now = (losses.sum(axis=0) / (known * weights).sum(axis=0)).sum() + 0.05 * (head.weight**2).sum()
        assert now <= before
        before = now
        head = gradient_steps(train, head, weights, 0.1, steps=1)


def test_oversampling_to_full_balance_weights_positives_by_the_negatives_per_positive() -> None:
    train = toy()
    # 5 positives and 20 negatives: each positive counts exactly four times.
    few = np.concatenate(
        [np.flatnonzero(train.targets[:, 1] == 1)[:5], np.flatnonzero(train.targets[:, 1] == 0)[:20]]
    )
    train = TrainingSet(train.features[few], train.targets[few][:, 1:], train.patients[few])
    weights = np.where(train.targets[:, 0] == 1, 4.0, 1.0)
    same(oversample.fit(OversampleOptions(), train, 0), fit_labels(train, weights, 1e-3))


def test_positives_are_repeated_evenly_up_to_the_ratio() -> None:
    rng = np.random.default_rng(0)
    assert sorted(np.bincount(oversample.further(4, 20, 0.5, rng)).tolist()) == [1, 1, 2, 2]
    assert len(oversample.further(4, 20, 0.2, rng)) == 0
    assert len(oversample.further(0, 20, 1.0, rng)) == 0
    counts = np.bincount(oversample.further(4, 20, 1.0, rng))
    assert counts.tolist() == [4, 4, 4, 4]
    assert sorted(np.bincount(oversample.further(4, 19, 1.0, rng)).tolist()) == [3, 4, 4, 4]


def test_smote_with_step_0_is_oversampling() -> None:
    train = toy()
    same(smote.fit(SmoteOptions(step=0), train, 3), oversample.fit(OversampleOptions(), train, 3), 0)
    assert (
        smote.fit(SmoteOptions(), train, 3).weight != oversample.fit(OversampleOptions(), train, 3).weight
    ).any()


def test_smote_neighbours_are_of_other_patients() -> None:
    points = np.array([[0.0], [0.1], [1.0], [3.0], [3.1]])
    assert smote.neighbours(points, np.arange(5), 2).tolist() == [[1, 2], [0, 2], [1, 0], [4, 2], [3, 2]]
    assert smote.neighbours(points, np.array([0, 0, 1, 2, 2]), 2).tolist() == [
        [2, 3],
        [2, 3],
        [1, 0],
        [2, 1],
        [2, 1],
    ]
    # Fewer images of others than neighbours: the nearest again. No other patient: the image itself.
    assert smote.neighbours(points[:3], np.array([0, 0, 1]), 3)[0].tolist() == [2, 2, 2]
    assert smote.neighbours(points[:3], np.zeros(3), 3).tolist() == [[0, 0, 0], [1, 1, 1], [2, 2, 2]]


def test_smote_neighbours_do_not_depend_on_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    points = np.random.default_rng(0).normal(size=(50, 4))
    whole = smote.neighbours(points, np.arange(50) // 3, 5)
    monkeypatch.setattr(smote, "CHUNK", 7)
    assert (smote.neighbours(points, np.arange(50) // 3, 5) == whole).all()


def test_smote_points_lie_on_segments_between_positives_of_different_patients() -> None:
    made = []
    train = toy(per_patient=3)

    def keep(
        features: np.ndarray, patients: np.ndarray, bases: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        points = smote.between(SmoteOptions(neighbours=3), features, patients, bases, rng)
        made.append((features, patients, bases, points))
        return points

    oversample.fit_with(SmoteOptions(), train, 0, keep)
    assert len(made) == 2
    for features, patients, bases, points in made:
        own = features[bases]
        for base, start, point in zip(bases, own, points, strict=True):
            others = features[patients != patients[base]]
            # |start − point| + |point − other| = |start − other| for one of the others
            excess = (
                np.linalg.norm(start - point)
                + np.linalg.norm(others - point, axis=1)
                - np.linalg.norm(others - start, axis=1)
            )
            assert excess.min() < 1e-12
        assert np.unique(points, axis=0).shape == points.shape


def test_positive_weight_logit_shift_and_prevalence_threshold_are_one_rule() -> None:
    """The optimum of BCE with pos_weight (1 − π)/π, a logit minus that of π, and calling above π agree."""
    prevalence, probabilities = 0.05, np.array([0.01, 0.05, 0.3, 0.9])
    weight = (1 - prevalence) / prevalence
    best = [
        minimize(
            lambda z, eta=eta: weight * eta * np.logaddexp(0, -z[0]) + (1 - eta) * np.logaddexp(0, z[0]),
            [0.0],
            tol=1e-12,
        ).x[0]
        for eta in probabilities
    ]
    shifted = logit(probabilities) - logit(prevalence)
    np.testing.assert_allclose(shifted, [-1.65068, 0, 2.09714, 5.14166], atol=5e-6)
    np.testing.assert_allclose(best, shifted, atol=1e-5)
    assert ((shifted > 1e-12) == (probabilities > prevalence)).all()
    # The same in a fit: with one image group per probability, oversampling to balance shifts the logits alone.
    counts = np.array([1000, 1000])
    target = np.concatenate([np.repeat([1.0, 0.0], [20, 980]), np.repeat([1.0, 0.0], [80, 920])])
    features = np.repeat([[0.0], [1.0]], counts, axis=0)
    train = TrainingSet(features, target[:, None], np.arange(2000))
    even = oversample.fit(OversampleOptions(l2=1e-12), train, 0)
    np.testing.assert_allclose(
        even.logits(np.array([[0.0], [1.0]])).ravel(), logit([0.02, 0.08]) - logit(0.05), atol=1e-6
    )
