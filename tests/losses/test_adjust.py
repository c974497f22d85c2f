"""Logit adjustment: reference values, where it is the loss without it, and what it is best for."""

import pytest
import torch
from loss_references import LOGITS, TARGETS, batch, gradient

from ral.losses import LOSSES, ClassCounts, build_loss
from ral.losses.adjust import Adjusted


def counts(*positives: float, images: float = 1000.0) -> ClassCounts:
    found = torch.tensor(positives, dtype=torch.float64)
    return ClassCounts(found, images - found)


def test_adaptive_equals_the_reference() -> None:
    entry = batch("adaptive logit adjustment")
    loss = Adjusted(build_loss("bce"), counts(500, 200, 50), "adaptive")
    loss.double().prior.copy_(torch.tensor([1.0, 0.4, 0.1]))
    value, slope = gradient(loss, LOGITS, TARGETS)
    assert value == pytest.approx(entry["loss"], rel=1e-6)
    torch.testing.assert_close(slope, torch.tensor(entry["grad"], dtype=torch.float64), rtol=1e-6, atol=1e-9)
    # The same as a softmax over two logits, 0 and the shifted one.
    shifted = LOGITS + torch.log(loss.prior)
    softmax = torch.log_softmax(torch.stack([torch.zeros_like(shifted), shifted]), 0)
    assert value == pytest.approx(-torch.where(TARGETS > 0, softmax[1], softmax[0]).mean().item(), rel=1e-12)


def test_the_prior_starts_as_the_frequency_and_becomes_the_score_of_positives() -> None:
    loss = Adjusted(build_loss("bce"), counts(500, 200, 0), "adaptive").double()
    torch.testing.assert_close(
        loss.prior, torch.tensor([1.0, 0.4, 0.002], dtype=torch.float64), rtol=1e-6, atol=0
    )
    loss.learn(LOGITS, TARGETS)
    wanted = torch.tensor([1.0, 0.9914068264, 0.5785841935], dtype=torch.float64)
    torch.testing.assert_close(loss.prior, wanted, rtol=1e-9, atol=0)
    without = TARGETS.clone()
    without[:, 1] = torch.nan  # no known label of the second finding: its prior stays
    loss.learn(LOGITS, without)
    assert loss.prior[1].item() == pytest.approx(
        1.0
    )  # 0.9914 is above 0.8247, the score of the first finding
    before = loss.prior.clone()
    loss.learn(torch.full_like(LOGITS, torch.nan), TARGETS)
    assert torch.equal(loss.prior, before)
    loss.learn(torch.full_like(LOGITS, -1e4), TARGETS)
    assert loss.prior.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("adjust", ["static", "adaptive"])
def test_equal_priors_are_the_base_loss(name: str, adjust: str) -> None:
    equal = counts(500, 500, 500)
    base = build_loss(name, {}, equal, "sum")
    loss = Adjusted(build_loss(name, {}, equal, "sum"), equal, adjust)  # type: ignore[arg-type]
    targets = TARGETS.clone()
    targets[1, 0] = torch.nan
    for first, second in zip(gradient(base, LOGITS, targets), gradient(loss, LOGITS, targets), strict=True):
        assert torch.equal(torch.as_tensor(first), torch.as_tensor(second))
    assert (loss.by_label, loss.separable, loss.units(targets)) == (
        base.by_label,
        base.separable,
        base.units(targets),
    )


def test_the_base_loss_gets_the_reduction_and_the_epoch() -> None:
    some = counts(300, 30, 3)
    loss = Adjusted(build_loss("ldam", {"defer_epoch": 2}, some), some, "static")
    loss.reduction = "none"
    assert loss(LOGITS, TARGETS).shape == LOGITS.shape
    early = loss(LOGITS, TARGETS)
    loss.set_epoch(2)
    assert not torch.equal(loss(LOGITS, TARGETS), early)


def test_the_base_loss_remembers_the_adjusted_logits() -> None:
    some = counts(300, 30, 3)
    base, loss = build_loss("anyloss", {}, some), Adjusted(build_loss("anyloss", {}, some), some, "static")
    loss.remember(LOGITS, TARGETS)
    base.remember(loss.shifted(LOGITS), TARGETS)
    assert base.state_dict()["running"].any()
    assert torch.equal(loss.state_dict()["base.running"], base.state_dict()["running"])


@pytest.mark.parametrize("tau", [0.5, 1.0])
def test_the_best_logit_of_static_adjustment_leaves_the_prevalence_out(tau: float) -> None:
    """With a probability η of a finding, cross-entropy is least at logit(η) − τ logit(π)."""
    probability, prevalence = 0.3, 0.02
    one = counts(20)
    loss = Adjusted(build_loss("bce", reduction="none"), one, "static", tau)
    x = torch.linspace(-6, 6, 120001, dtype=torch.float64)[:, None]
    cost = probability * loss(x, torch.ones_like(x)) + (1 - probability) * loss(x, torch.zeros_like(x))
    logit = torch.logit(torch.tensor([probability, prevalence], dtype=torch.float64))
    assert x[cost.argmin()].item() == pytest.approx((logit[0] - tau * logit[1]).item(), abs=1e-3)


@pytest.mark.parametrize("adjust", ["static", "adaptive"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_rare_and_absent_findings_stay_finite(adjust: str, dtype: torch.dtype) -> None:
    some = counts(0, 1, 1000)
    loss = Adjusted(build_loss("ral", reduction="sum"), some, adjust)  # type: ignore[arg-type]
    for extreme in (-1e4, 0.0, 1e4):
        value, slope = gradient(loss, torch.full((4, 3), extreme, dtype=dtype), TARGETS)
        assert torch.isfinite(torch.tensor(value))
        assert torch.isfinite(slope).all()
        assert slope.dtype == dtype
        assert (slope[TARGETS > 0] <= 0).all()
        assert (slope[TARGETS < 1] >= 0).all()


def test_only_what_is_learnt_is_part_of_a_checkpoint() -> None:
    some = counts(300, 30, 3)
    assert set(Adjusted(build_loss("cb", {}, some), some, "adaptive").state_dict()) == {"prior"}
    assert not Adjusted(build_loss("cb", {}, some), some, "static").state_dict()
