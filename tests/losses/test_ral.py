"""RAL equals its authors' code where their clamp does not act, and stays finite where theirs does not."""

import json
from pathlib import Path

import pytest
import torch

from ral.config.train import LossConfig
from ral.losses import BCE, RAL, build_loss

# Loss and gradient per logit from the authors' code (kalelpark/RAL), float64, sum over one element.
REFERENCE = [
    entry
    for entry in json.loads((Path(__file__).parent / "reference.json").read_text())["table"]
    if entry["loss"] == "ral"
]
# Where the authors' clamp of a probability at 1e-8 acts.
CLAMPED = 18.4


@pytest.mark.parametrize("entry", REFERENCE, ids=lambda entry: str(entry["params"]))
def test_equals_the_authors_code(entry: dict) -> None:
    loss = RAL("sum", **entry["params"])
    compared = 0
    for logit, target, value, slope in entry["rows"]:
        acts = logit < -CLAMPED if target else logit > CLAMPED and entry["params"].get("clip") == 0
        if acts:
            continue
        x = torch.tensor([[float(logit)]], dtype=torch.float64, requires_grad=True)
        out = loss(x, torch.tensor([[float(target)]], dtype=torch.float64))
        out.backward()
        assert out.item() == pytest.approx(value, rel=1e-6, abs=1e-15)
        assert x.grad is not None
        assert x.grad.item() == pytest.approx(slope, rel=1e-6, abs=1e-15)
        compared += 1
    assert compared >= 28


@pytest.mark.parametrize("form", ["code", "paper"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_finite_everywhere_and_positives_always_pull(form, dtype: torch.dtype) -> None:
    for target in (0.0, 1.0):
        x = torch.tensor([-1e4, -300, -88, -40, -18, 0, 18, 40, 88, 300, 1e4], dtype=dtype)[
            None
        ].requires_grad_()
        loss = RAL("sum", form=form)(x, torch.full_like(x, target))
        loss.backward()
        assert x.grad is not None
        assert loss.dtype == torch.float32
        assert torch.isfinite(loss)
        assert torch.isfinite(x.grad).all()
        if target:
            assert (x.grad[x < -10] < -0.5).all()  # the authors' clamp gives 0 from -18.4 down


def test_paper_form_drops_the_code_s_extra_factors() -> None:
    x = torch.tensor([[0.3]], dtype=torch.float64)
    y = torch.zeros_like(x)
    p = torch.sigmoid(x)
    q = 1 - p + 0.05
    extra = p**2 * (1.5 - q)
    paper, code = (RAL("sum", form=form)(x, y) for form in ("paper", "code"))
    assert code.item() == pytest.approx((paper * extra).item(), rel=1e-12)


@pytest.mark.parametrize("loss", [RAL(), BCE()])
def test_unknown_labels_are_as_if_absent(loss: torch.nn.Module) -> None:
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    y = (torch.arange(24).reshape(6, 4) % 3 == 0).float()
    masked = y.clone()
    masked[1, 2] = masked[4, 0] = torch.nan
    value = loss(x, masked)
    value.backward()
    known = ~masked.isnan()
    assert value.item() == pytest.approx(loss(x[known][None], y[known][None]).item(), rel=1e-6)
    assert x.grad is not None
    assert (x.grad[~known] == 0).all()
    assert torch.isfinite(x.grad).all()
    assert loss(x, torch.full_like(y, torch.nan)).item() == 0


@pytest.mark.parametrize("name", ["ral", "bce"])
def test_registry_and_reductions(name) -> None:
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    y = torch.eye(5, 3)
    config = LossConfig(name=name)
    none = build_loss(config, "none")(x, y)
    assert none.shape == x.shape
    assert build_loss(config, "sum")(x, y).item() == pytest.approx(none.sum().item())
    assert build_loss(config)(x, y).item() == pytest.approx(none.mean().item())
    with pytest.raises(ValueError, match="differ in shape"):
        build_loss(config)(x, y[:3])
