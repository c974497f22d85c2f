"""STORM: the closed form of its meta gradient, constant weights, and mislabelled images."""

import numpy as np
import pytest
import torch
from scipy.special import expit
from torch.nn.functional import binary_cross_entropy_with_logits as bce_of

from ral.config.sampler import SamplerConfig
from ral.config.second_phase import CRTOptions, StormOptions
from ral.training.second_phase import crt, storm
from ral.training.second_phase.base import LinearHead, TrainingSet

UNIFORM = SamplerConfig(name="uniform")


def noisy(images: int = 600) -> tuple[TrainingSet, np.ndarray]:
    """Two separable findings (40 % and 15 %); 20 % of the labels are flipped, and which."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(images, 4))
    targets = (features[:, :2] > np.array([0.25, 1.04])).astype(float)
    flipped = rng.random(targets.shape) < 0.2
    return TrainingSet(features, np.where(flipped, 1 - targets, targets), np.arange(images) // 2), flipped


def test_the_meta_gradient_is_that_of_autograd() -> None:
    rng = np.random.default_rng(0)
    x, v = rng.normal(size=(6, 3)), rng.normal(size=(5, 3))
    y, u = rng.integers(0, 2, (6, 2)).astype(float), rng.integers(0, 2, (5, 2)).astype(float)
    weight, bias, rate = rng.normal(size=(2, 3)), rng.normal(size=2), np.array([0.3, 0.7])
    w = torch.ones(6, 2, dtype=torch.float64, requires_grad=True)
    tw, tb = (torch.tensor(part, requires_grad=True) for part in (weight, bias))
    tx, ty, tv, tu = (torch.tensor(part) for part in (x, y, v, u))
    inner = (w * bce_of(tx @ tw.T + tb, ty, reduction="none")).sum() / 6
    by_weight, by_bias = torch.autograd.grad(inner, (tw, tb), create_graph=True)
    steps = torch.tensor(rate)
    moved = tv @ (tw - steps[:, None] * by_weight).T + tb - steps * by_bias
    outer = bce_of(moved, tu, reduction="none").sum() / 5
    (expected,) = torch.autograd.grad(outer, w)
    error = (expit(x @ weight.T + bias) - y) / 6
    after = LinearHead(weight - rate[:, None] * (error.T @ x), bias - rate * error.sum(axis=0))
    error_outer = (expit(after.logits(v)) - u) / 5
    found = storm.meta_gradient((x, error), (v, error_outer), rate)
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=1e-15)


def test_the_derivative_of_the_weights_is_that_of_finite_differences() -> None:
    rng = np.random.default_rng(1)
    targets = rng.integers(0, 2, (7, 2)).astype(float)
    targets[2, 1] = np.nan
    features = storm.inputs(rng.normal(size=(7, 2)), targets)
    omega = rng.normal(size=storm.INPUTS)
    weights, derivative = storm.label_weights(omega, features, targets)
    assert weights[2, 1] == 0
    for finding in range(2):
        for value in (0, 1):
            assert weights[targets[:, finding] == value, finding].mean() == pytest.approx(1)
    for index in range(storm.INPUTS):
        shift = np.zeros(storm.INPUTS)
        shift[index] = 1e-6
        ahead, behind = (storm.label_weights(omega + s, features, targets)[0] for s in (shift, -shift))
        np.testing.assert_allclose(derivative[:, :, index], (ahead - behind) / 2e-6, rtol=0, atol=1e-8)


@pytest.mark.parametrize("options", [{"rounds": 0}, {"learning_rate": 0.0, "rounds": 5}])
def test_a_constant_weighting_is_crt(options: dict[str, float]) -> None:
    train, _ = noisy()
    head, reference = storm.fit(StormOptions(**options), train, 3), crt.fit(CRTOptions(), train, 3)
    np.testing.assert_allclose(head.weight, reference.weight, rtol=0, atol=1e-9)
    np.testing.assert_allclose(head.bias, reference.bias, rtol=0, atol=1e-9)


def test_mislabelled_images_get_less_weight() -> None:
    train, flipped = noisy()
    weights = storm.learn(StormOptions(sampler=UNIFORM), train, 0)
    for finding in range(2):
        for value in (0, 1):
            group = train.targets[:, finding] == value
            wrong = flipped[:, finding]
            assert weights[group & wrong, finding].mean() < 0.5 * weights[group & ~wrong, finding].mean()


def test_the_halves_share_no_patient() -> None:
    patients = np.arange(100) // 3
    first, second = storm.halves(patients, np.random.default_rng(0))
    assert sorted([*first, *second]) == list(range(100))
    assert not set(patients[first]) & set(patients[second])
