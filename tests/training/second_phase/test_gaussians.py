"""Virtual features, RCAL and the local outlier factor: closed forms, limit cases and planted errors."""

import numpy as np
import pytest
from sklearn.covariance import ledoit_wolf
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import roc_auc_score

from ral.config.second_phase import RCALOptions, VirtualOptions
from ral.explain.outliers import local_outlier_factor
from ral.training.second_phase import rcal, virtual
from ral.training.second_phase.base import TrainingSet
from ral.training.second_phase.virtual import Gaussian


def clouds(counts: tuple[int, ...] = (200, 100, 12), images: int = 600, width: int = 4) -> TrainingSet:
    """Disjoint findings, each around a centre of its own; correlated features."""
    rng = np.random.default_rng(0)
    targets, features = np.zeros((images, len(counts))), rng.normal(size=(images, width))
    start = 0
    for index, count in enumerate(counts):
        targets[start : start + count, index] = 1
        features[start : start + count, index] += 2
        start += count
    mixing = np.eye(width) + 0.4 * rng.normal(size=(width, width))
    return TrainingSet(features @ mixing, targets, np.arange(images))


def test_the_sample_covariance_has_the_ridge_on_its_diagonal() -> None:
    points = np.array([[0.0, 0], [1, 0], [0, 2]])
    mean = points.mean(axis=0)
    np.testing.assert_allclose(mean, [1 / 3, 2 / 3])
    expected = [[1 / 3 + 0.01, -1 / 3], [-1 / 3, 4 / 3 + 0.01]]
    np.testing.assert_allclose(virtual.covariance(points - mean, 1, 0.01), expected, rtol=0, atol=1e-12)


def test_without_a_ridge_the_covariance_is_shrunk() -> None:
    points = np.random.default_rng(0).normal(size=(10, 30))
    shrunk = virtual.covariance(points - points.mean(axis=0), 1, None)
    np.testing.assert_allclose(shrunk, ledoit_wolf(points)[0], rtol=0, atol=1e-12)
    assert np.linalg.eigvalsh(shrunk)[0] > 0.01


def test_infinitely_many_draws_are_linear_discriminant_analysis() -> None:
    train = clouds()
    head = virtual.fit(VirtualOptions(ridge=0.0), train, 0)
    for index, target in enumerate(train.targets.T):
        positives, negatives = train.features[target == 1], train.features[target == 0]
        means = positives.mean(axis=0), negatives.mean(axis=0)
        residuals = np.concatenate([positives - means[0], negatives - means[1]])
        pooled = residuals.T @ residuals / (len(residuals) - 2)
        np.testing.assert_allclose(pooled @ head.weight[index], means[0] - means[1], rtol=0, atol=1e-9)
        reference = LinearDiscriminantAnalysis(solver="lsqr").fit(train.features, target).coef_[0]
        direction = head.weight[index] / np.linalg.norm(head.weight[index])
        np.testing.assert_allclose(direction, reference / np.linalg.norm(reference), rtol=0, atol=1e-9)
        # Equal priors: the boundary passes half-way between the means.
        half_way = head.weight[index] @ (means[0] + means[1]) / 2 + head.bias[index]
        assert abs(half_way) < 1e-9


@pytest.mark.parametrize("covariance", ["shared", "own"])
def test_many_draws_approach_the_closed_form(covariance: str) -> None:
    train = clouds(counts=(300, 300), width=3)
    limit = virtual.fit(VirtualOptions(ridge=0.01), train, 0)
    options = VirtualOptions(ridge=0.01, covariance=covariance, draws=100_000, l2=1e-9)
    drawn = virtual.fit(options, train, 0)
    for index in range(2):
        exact, near = limit.weight[index], drawn.weight[index]
        cosine = exact @ near / np.linalg.norm(exact) / np.linalg.norm(near)
        assert cosine > (0.9998 if covariance == "shared" else 0.99)
        if covariance == "shared":
            np.testing.assert_allclose(near, exact, rtol=0, atol=0.05)
            np.testing.assert_allclose(drawn.bias[index], limit.bias[index], rtol=0, atol=0.05)


def test_more_features_than_positives_do_no_harm() -> None:
    train = clouds(counts=(100, 5), width=60)
    for options in (VirtualOptions(), VirtualOptions(covariance="own", draws=500)):
        head = virtual.fit(options, train, 0)
        z = head.logits(train.features)[:, 1]
        assert roc_auc_score(train.targets[:, 1], z) > 0.8


def test_rcal_without_outliers_and_borrowing_is_virtual() -> None:
    train = clouds()
    for draws in (None, 50):
        plain = virtual.fit(VirtualOptions(draws=draws), train, 2)
        for options in (
            RCALOptions(draws=draws, outliers=False, borrow=0),
            RCALOptions(draws=draws, outliers=False, own=1.0),
            RCALOptions(draws=draws, outliers=False, rare=1),
        ):
            head = rcal.fit(options, train, 2)
            assert (head.weight == plain.weight).all()
            assert (head.bias == plain.bias).all()


def test_a_rare_finding_borrows_from_the_nearest_frequent_ones() -> None:
    frequent = [Gaussian(np.array([x, 0.0]), scale * np.eye(2)) for x, scale in ((10, 9), (1, 2), (2, 4))]
    own = Gaussian(np.array([0.0, 4.0]), np.diag([1.0, 0.0]))
    mixed = rcal.borrowed(own, frequent, RCALOptions(borrow=2, own=0.25, widen=0.5))
    np.testing.assert_allclose(mixed.mean, [0.75 * 1.5, 1.0])
    np.testing.assert_allclose(mixed.covariance, np.diag([0.25 + 0.75 * 3 + 0.5, 0.75 * 3 + 0.5]))
    assert rcal.borrowed(own, [], RCALOptions()) is own


def test_only_rare_findings_borrow() -> None:
    train = clouds()
    plain = rcal.fit(RCALOptions(outliers=False, borrow=0), train, 0)
    head = rcal.fit(RCALOptions(outliers=False, borrow=1, rare=50), train, 0)
    assert (head.weight[:2] == plain.weight[:2]).all()
    assert (head.weight[2] != plain.weight[2]).any()


def test_outliers_do_not_move_the_head() -> None:
    train = clouds(counts=(200,))
    spoiled = train.features.copy()
    spoiled[:5] += 40
    spoiled = TrainingSet(spoiled, train.targets, train.patients)
    clean = rcal.fit(RCALOptions(outliers=False), train, 0).weight[0]

    def cosine(options: RCALOptions) -> float:
        weight = rcal.fit(options, spoiled, 0).weight[0]
        return float(weight @ clean / np.linalg.norm(weight) / np.linalg.norm(clean))

    assert cosine(RCALOptions()) > 0.99
    assert cosine(RCALOptions(outliers=False)) < 0.9


def test_planted_outliers_have_the_highest_factors() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(300, 8))
    planted = np.arange(300) < 15
    features[planted] += 6 * rng.choice([-1, 1], size=(15, 8))
    assert roc_auc_score(planted, local_outlier_factor(features, 20)) > 0.95
    assert local_outlier_factor(features[:2], 20).tolist() == [1, 1]
    assert np.isfinite(local_outlier_factor(np.zeros((6, 2)), 3)).all()
