"""Attacks against closed forms on linear models, and against enumeration."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import norm
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from ral.models.pgd import Bounds, gray_bounds, pgd
from ral.robustness.attack import attack_all, attack_each

LABELS, PIXELS = 3, 9


class Linear(nn.Module):
    """Logits w · x + b of images [images, 1, 3, 3], in double precision."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(4)
        self.weight = torch.randn(LABELS, PIXELS, generator=generator, dtype=torch.float64)
        self.bias = torch.tensor([0.2, -1.0, 0.0], dtype=torch.float64)

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ self.weight.T + self.bias


class Gray:
    """Statistics of pixels."""

    pixel_mean, pixel_deviation = 130.0, 40.0


@pytest.fixture
def images() -> Tensor:
    """In the middle of the gray range, standardised: [8, 1, 3, 3]."""
    levels = torch.randint(50, 206, (8, 1, 3, 3), generator=torch.Generator().manual_seed(1)).double()
    return (levels - Gray.pixel_mean) / Gray.pixel_deviation


@pytest.fixture
def labels() -> Tensor:
    found = torch.randint(0, 2, (8, LABELS), generator=torch.Generator().manual_seed(2)).double()
    found[3, 1] = torch.nan
    return found


def test_the_worst_score_of_a_linear_model_is_its_closed_form(images: Tensor, labels: Tensor) -> None:
    """softplus(−s z + eps |w|₁) with s = ±1, to the last digits."""
    model, eps = Linear(), 6.0
    radius = eps / Gray.pixel_deviation
    worst = attack_each(model, images, labels, gray_bounds(images, eps, Gray), 4, 2.5 * radius / 4)
    sign = torch.where(labels > 0.5, 1.0, -1.0).double()
    expected = F.softplus(-sign * model(images) + radius * model.weight.abs().sum(dim=1))
    known = ~labels.isnan()
    torch.testing.assert_close(F.softplus(-sign * worst)[known], expected[known], rtol=1e-15, atol=4e-16)
    assert worst[3, 1] == model(images)[3, 1]


def test_an_attack_on_all_is_weaker_than_attacks_on_each(images: Tensor, labels: Tensor) -> None:
    """One change of the pixels serves all findings. The best one is at a corner of the bounds: all are tried."""
    model, radius = Linear(), 0.3
    labels = labels.nan_to_num(0.0)
    bounds = Bounds(images - radius, images + radius)

    def losses(logits: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(logits, labels, reduction="none").sum(dim=1)

    corners = torch.tensor(list(itertools.product((-radius, radius), repeat=PIXELS))).double()
    moved = torch.stack([losses(model(images + corner.view(1, 1, 3, 3))) for corner in corners])
    best = moved.max(dim=0).values
    together = losses(attack_all(model, images, labels, bounds, 8, radius / 2))
    each = losses(attack_each(model, images, labels, bounds, 8, radius / 2))
    clean = losses(model(images))
    assert (clean < together).all()
    assert (together <= best * (1 + 1e-12)).all()
    torch.testing.assert_close(together.mean(), best.mean(), rtol=0.02, atol=0)
    assert (best < each - 1e-6).any()
    assert best.sum() < each.sum()


def test_an_attack_never_helps_even_with_steps_that_are_too_long(images: Tensor, labels: Tensor) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, 8), nn.ReLU(), nn.Linear(8, LABELS)).double()
    network.requires_grad_(False)
    bounds = gray_bounds(images, 8.0, Gray)
    clean = network(images)
    sign = torch.where(labels > 0.5, 1.0, -1.0).double()
    worst = attack_each(network, images, labels, bounds, 3, 50.0)
    known = ~labels.isnan()
    assert (sign * worst <= sign * clean)[known].all()
    loss = nn.BCEWithLogitsLoss(reduction="none")
    rows = known.all(dim=1)
    together = attack_all(network, images, labels, bounds, 3, 50.0)
    assert (loss(together, labels)[rows].sum(1) >= loss(clean, labels)[rows].sum(1)).all()


def test_an_image_is_attacked_as_it_is_alone(images: Tensor, labels: Tensor) -> None:
    model, bounds = Linear(), gray_bounds(images, 4.0, Gray)
    for attack in (attack_each, attack_all):
        whole = attack(model, images, labels, bounds, 3, 0.05)
        parts = [
            attack(
                model, images[[row]], labels[[row]], Bounds(bounds.low[[row]], bounds.high[[row]]), 3, 0.05
            )
            for row in range(len(images))
        ]
        torch.testing.assert_close(whole, torch.cat(parts), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize(
    ("eps", "minority", "majority"),
    [(0.0, 0.266752, 0.012726), (0.2, 0.336808, 0.007426), (0.5, 0.572694, 0.001181)],
)
def test_adversarial_training_widens_the_gap_of_rare_and_frequent(
    eps: float, minority: float, majority: float
) -> None:
    """x | y from N(y, 0.7²), ten negatives a positive. Logistic regression on attacked points errs on 27 % of clean
    positives at eps 0, on 57 % at eps 0.5, and less on negatives. (The budget is one pixel's, so all norms agree.)
    """
    mean, deviation, ratio = 1.0, 0.7, 10
    grid = np.linspace(-7, 7, 20001)
    points = np.concatenate([mean + deviation * grid, -mean + deviation * grid])
    label = np.repeat([1.0, 0.0], len(grid))
    weight = np.tile(norm.pdf(grid), 2) * np.where(label == 1, 1, ratio)
    start = torch.from_numpy(points)[:, None, None, None]
    sign = torch.from_numpy(np.where(label == 1, 1.0, -1.0))
    # The weight of any sensible classifier is positive; how large it is does not matter to the attack.
    bounds = Bounds(start - eps, start + eps)
    attacked = pgd(lambda x: F.softplus(-sign * x.flatten()).sum(), start, bounds, 3, eps or 0.1)
    model = LogisticRegression(C=1e12, tol=1e-12, max_iter=10000)
    model.fit(attacked.view(-1, 1).numpy(), label, sample_weight=weight)
    boundary = -model.intercept_[0] / model.coef_[0, 0]
    assert boundary == pytest.approx(deviation**2 * np.log(ratio) / (2 * (mean - eps)), abs=1e-4)
    assert norm.cdf((boundary - mean) / deviation) == pytest.approx(minority, abs=1e-4)
    assert norm.cdf((-boundary - mean) / deviation) == pytest.approx(majority, abs=1e-4)
