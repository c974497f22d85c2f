"""PRESTO: gradient, both limits of the penalty, and data without an ordered middle."""

import numpy as np
import pytest
from scipy.optimize import approx_fprime, minimize
from scipy.special import expit

from ral.config.second_phase import PrestoOptions
from ral.training.second_phase import presto
from ral.training.second_phase.base import TrainingSet, logistic

TINY = 1e-12


def ordered(images: int = 500) -> tuple[np.ndarray, np.ndarray]:
    """Features [images, 2] and ranks 0, 1, 2 (60 %, 30 %, 10 %) of a proportional-odds model."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(images, 2))
    z = features @ [1.4, -0.8] + rng.logistic(size=images)
    return features, np.digitize(z, np.quantile(z, [0.6, 0.9])).astype(float)


def proportional_odds(features: np.ndarray, rank: np.ndarray) -> np.ndarray:
    """a₁, a₂ and the common slope, by a general minimiser."""

    def loss(parameters: np.ndarray) -> float:
        z = features @ parameters[2:]
        lower, upper = expit(parameters[0] + z), expit(parameters[1] + z)
        chance = np.choose(rank.astype(int), [lower, upper - lower, 1 - upper])
        return float(-np.log(np.maximum(chance, 1e-300)).mean())

    start = np.array([0.0, 1.0, 0.0, 0.0])
    rough = minimize(
        loss, start, method="Nelder-Mead", options={"maxiter": 20_000, "xatol": 1e-9, "fatol": 1e-14}
    )
    return minimize(loss, rough.x, method="BFGS", options={"gtol": 1e-9}).x


def test_the_gradient_is_that_of_finite_differences() -> None:
    features, rank = ordered(60)
    parameters = np.array([0.1, 2.0, -0.5, 0.2, 0.1, -0.05])
    value, gradient = presto.likelihood(features, rank, parameters, 0.1)
    numeric = approx_fprime(parameters, lambda p: presto.likelihood(features, rank, p, 0.1)[0], 1e-7)
    np.testing.assert_allclose(gradient, numeric, rtol=0, atol=1e-6)
    lower = expit(0.1 + features @ [-0.5, 0.2])
    upper = expit(2.0 + features @ [-0.4, 0.15])
    chance = np.choose(rank.astype(int), [lower, upper - lower, 1 - upper])
    penalty = 0.05 * (0.5**2 + 0.2**2 + 0.1**2 + 0.05**2)
    assert value == pytest.approx(-np.log(chance).mean() + penalty, abs=1e-12)


def test_a_large_penalty_is_proportional_odds() -> None:
    features, rank = ordered()
    found = presto.boundaries(features, rank, PrestoOptions(l2=TINY, shrink=100))
    assert (found.difference == 0).all()
    expected = proportional_odds(features, rank)
    np.testing.assert_allclose(found.bias, expected[:2], rtol=0, atol=1e-6)
    np.testing.assert_allclose(found.slope, expected[2:], rtol=0, atol=1e-6)


def test_no_penalty_is_two_free_boundaries() -> None:
    features, rank = ordered(4000)
    found = presto.boundaries(features, rank, PrestoOptions(l2=TINY, shrink=0))
    parameters = np.concatenate([found.bias, found.slope, found.difference])
    value, gradient = presto.likelihood(features, rank, parameters, TINY)
    np.testing.assert_allclose(gradient, 0, atol=1e-7)
    # Two separate regressions estimate the same boundaries, with a likelihood that is not higher.
    separate = [logistic(features, (rank <= k).astype(float), np.ones(len(rank)), TINY) for k in (0, 1)]
    np.testing.assert_allclose(found.slope, separate[0][0], atol=0.05)
    np.testing.assert_allclose(found.slope + found.difference, separate[1][0], atol=0.05)
    joined = np.concatenate(
        [[separate[0][1], separate[1][1]], separate[0][0], separate[1][0] - separate[0][0]]
    )
    assert value <= presto.likelihood(features, rank, joined, TINY)[0]


def test_the_optimum_satisfies_the_conditions_of_the_l1_penalty() -> None:
    features, rank = ordered()
    # The third feature tells uncertain from both others: its two slopes differ.
    features = np.column_stack([features, np.random.default_rng(1).normal(size=len(rank)) + (rank == 1)])
    options = PrestoOptions(l2=1e-3, shrink=0.02)
    found = presto.boundaries(features, rank, options)
    gradient = presto.likelihood(features, rank, np.concatenate(found), options.l2)[1]
    np.testing.assert_allclose(gradient[:5], 0, atol=1e-7)
    by_difference, moved = gradient[5:], found.difference != 0
    assert moved.any()
    assert not moved.all()
    np.testing.assert_allclose(
        by_difference[moved], -options.shrink * np.sign(found.difference[moved]), atol=1e-7
    )
    assert (np.abs(by_difference[~moved]) <= options.shrink + 1e-7).all()


def test_the_head_is_that_of_the_upper_boundary() -> None:
    features, rank = ordered()
    targets = np.where(rank == 2, 1.0, np.where(rank == 1, np.nan, 0.0))[:, None]
    train = TrainingSet(features, targets, np.arange(len(rank)), (rank == 1)[:, None])
    options = PrestoOptions()
    head, found = presto.fit(options, train, 0), presto.boundaries(features, rank, options)
    np.testing.assert_allclose(head.weight[0], -(found.slope + found.difference))
    assert head.weight[0, 0] > 0.5
    np.testing.assert_allclose(head.bias[0], -found.bias[1])


def test_a_finding_without_uncertain_labels_has_a_logistic_regression() -> None:
    features, rank = ordered()
    positive = (rank > 0).astype(float)
    train = TrainingSet(features, positive[:, None], np.arange(len(rank)), np.zeros((len(rank), 1), bool))
    head = presto.fit(PrestoOptions(), train, 0)
    weight, bias = logistic(features, positive, np.ones(len(rank)), 1e-3)
    np.testing.assert_allclose(head.weight[0], weight, atol=1e-12)
    np.testing.assert_allclose(head.bias[0], bias, atol=1e-12)
