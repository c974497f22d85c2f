"""Z-loss: reference values, invariance, and groups that tell nothing."""

import pytest
import torch
from loss_references import LOGITS, TARGETS, batch, gradient

from ral.losses import build_loss

NAMES = {"finding": "zloss per finding", "image": "zloss per image"}


@pytest.mark.parametrize("axis", NAMES)
def test_equals_the_reference(axis: str) -> None:
    entry = batch(NAMES[axis])
    value, slope = gradient(build_loss("z_loss", {"axis": axis}), LOGITS, TARGETS)
    assert value == pytest.approx(entry["loss"], rel=1e-6)
    torch.testing.assert_close(slope, torch.tensor(entry["grad"], dtype=torch.float64), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("axis", NAMES)
def test_scale_and_shift_do_not_matter(axis: str) -> None:
    loss = build_loss("z_loss", {"axis": axis, "slope": 2.0, "shift": 0.3})
    assert loss(3 * LOGITS + 5, TARGETS).item() == pytest.approx(loss(LOGITS, TARGETS).item(), abs=2e-12)
    factors = torch.tensor([[1.0, 7.0, 0.4]], dtype=torch.float64)
    per_finding = loss(factors * LOGITS - factors, TARGETS).item() == pytest.approx(
        loss(LOGITS, TARGETS).item()
    )
    assert per_finding == (axis == "finding")


def test_slope_and_shift_are_those_of_the_formula() -> None:
    a, b = 2.0, 0.3
    z = (LOGITS - LOGITS.mean(0)) / LOGITS.std(0, correction=0)
    plain = torch.log1p(torch.exp(a * (b - torch.where(TARGETS > 0, z, -z)))) / a
    loss = build_loss("z_loss", {"slope": a, "shift": b})
    assert loss(LOGITS, TARGETS).item() == pytest.approx(plain.mean().item(), rel=1e-12)


def test_only_the_image_axis_can_be_split() -> None:
    assert not build_loss("z_loss").separable
    loss = build_loss("z_loss", {"axis": "image"}, reduction="sum")
    assert loss.separable
    parts = loss(LOGITS[:1], TARGETS[:1]) + loss(LOGITS[1:], TARGETS[1:])
    torch.testing.assert_close(parts, loss(LOGITS, TARGETS))


@pytest.mark.parametrize("axis", NAMES)
def test_groups_of_one_label_and_equal_logits_are_harmless(axis: str) -> None:
    loss = build_loss("z_loss", {"axis": axis})
    for targets in (torch.zeros_like(TARGETS), torch.ones_like(TARGETS), torch.full_like(TARGETS, torch.nan)):
        value, slope = gradient(loss, LOGITS, targets)
        assert value == 0
        assert not slope.any()
    value, slope = gradient(loss, torch.full_like(LOGITS, 300.0).half(), TARGETS.half())
    assert value == pytest.approx(0.6931471805599453)
    assert torch.isfinite(slope).all()


def test_a_finding_learns_to_rank() -> None:
    """Gradient descent puts the positives of every finding above its negatives, whatever the scale."""
    x = (100 * torch.randn(40, 3, generator=torch.Generator().manual_seed(0))).double().requires_grad_()
    y = (torch.arange(120).reshape(40, 3) % 5 == 0).double()
    loss = build_loss("z_loss", reduction="sum")
    for _ in range(300):
        (slope,) = torch.autograd.grad(loss(x, y), x)
        x = (x - 500 * slope).detach().requires_grad_()
    for logits, labels in zip(x.T, y.T, strict=True):
        assert logits[labels > 0].min() > logits[labels < 1].max()
