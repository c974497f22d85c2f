"""Comp-sum losses: reference values, special cases, and what generalised cross-entropy does to rare positives."""

import pytest
import torch
from loss_references import LOGITS, TARGETS, gradient, rows

from ral.losses import build_loss


def comp_sum(tau: float, tau_neg: float | None = None, reduction: str = "mean") -> torch.nn.Module:
    return build_loss(
        "comp_sum", {"tau_pos": tau, "tau_neg": tau if tau_neg is None else tau_neg}, None, reduction
    )  # type: ignore[arg-type]


@pytest.mark.parametrize("entry", rows("comp_sum"), ids=lambda entry: str(entry["params"]["tau"]))
def test_equals_the_reference(entry: dict) -> None:
    for logit, target, value, slope in entry["rows"]:
        x = torch.tensor([[float(logit)]], dtype=torch.float64)
        found, (found_slope,) = gradient(comp_sum(entry["params"]["tau"]), x, torch.full_like(x, target))
        assert found == pytest.approx(value, rel=1e-6, abs=1e-15)
        assert found_slope.item() == pytest.approx(slope, rel=1e-6, abs=1e-15)


def test_special_cases() -> None:
    p = torch.where(TARGETS > 0, torch.sigmoid(LOGITS), torch.sigmoid(-LOGITS))
    assert comp_sum(1.7)(LOGITS, TARGETS).item() == pytest.approx(
        ((1 - p**0.7) / 0.7).mean().item(), rel=1e-12
    )
    assert comp_sum(2.0)(LOGITS, TARGETS).item() == pytest.approx((1 - p).mean().item(), rel=1e-12)
    assert comp_sum(0.0)(LOGITS, TARGETS).item() == pytest.approx((1 / p - 1).mean().item(), rel=1e-12)
    bce = build_loss("bce")(LOGITS, TARGETS).item()
    assert comp_sum(1.0)(LOGITS, TARGETS).item() == pytest.approx(bce, rel=1e-15)
    for near in (1 - 1e-9, 1 + 1e-9):  # the limit, without cancellation
        assert comp_sum(near)(LOGITS, TARGETS).item() == pytest.approx(bce, rel=1e-7)


def test_each_side_has_its_tau() -> None:
    both = comp_sum(1.0, 1.7, "none")(LOGITS, TARGETS)
    torch.testing.assert_close(
        both[TARGETS > 0], comp_sum(1.0, reduction="none")(LOGITS, TARGETS)[TARGETS > 0]
    )
    torch.testing.assert_close(
        both[TARGETS < 1], comp_sum(1.7, reduction="none")(LOGITS, TARGETS)[TARGETS < 1]
    )


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0, 1.3, 2.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_finite_and_on_the_right_side_for_every_tau(tau: float, dtype: torch.dtype) -> None:
    x = torch.tensor([[-1e4, -300, -40, -12, -1, 0, 1, 12, 40, 300, 1e4]], dtype=dtype)
    for target, sign in ((1.0, -1), (0.0, 1)):
        leaf = x.clone().requires_grad_()
        value = comp_sum(tau, reduction="sum")(leaf, torch.full_like(x, target))
        (slope,) = torch.autograd.grad(value, leaf)
        assert torch.isfinite(value)
        assert torch.isfinite(slope).all()
        assert (slope * sign >= 0).all()
        if tau < 1 or target == tau == 1:  # the further off, the more it costs, and it always has a gradient
            assert slope.abs().max() in (slope[0, 0].abs(), slope[0, -1].abs())


def test_generalised_cross_entropy_gives_a_rare_positive_up() -> None:
    """The best constant score of a finding with prevalence π has odds (π / (1 − π))^(1 / (1 − q))."""
    prevalence, q = 0.05, 0.7
    x = torch.linspace(-14, 2, 20001, dtype=torch.float64)[:, None]
    ones = torch.ones_like(x)

    def best(loss: torch.nn.Module) -> float:
        cost = prevalence * loss(x, ones) + (1 - prevalence) * loss(x, 0 * ones)
        return torch.sigmoid(x[cost.argmin()]).item()

    odds = (prevalence / (1 - prevalence)) ** (1 / (1 - q))
    assert best(comp_sum(1 + q, reduction="none")) == pytest.approx(odds / (1 + odds), rel=1e-2)
    assert best(comp_sum(1.0, reduction="none")) == pytest.approx(prevalence, rel=1e-2)
    assert best(comp_sum(1.0, 1 + q, reduction="none")) > prevalence  # negatives only: never below
