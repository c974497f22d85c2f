"""Every loss against its authors' numbers, or against its formula written out plainly in float64."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from loss_references import CONTENT, LOGITS, TARGETS

from ral.losses import ClassCounts, build_loss

# Loss and gradient per logit from the authors' code, float64, sum over one element.
TABLE = json.loads((Path(__file__).parent / "reference.json").read_text())["table"]
# Where the authors' clamp of a probability at 1e-8 acts.
CLAMPED = 18.4

THRESHOLD_METRICS = ClassCounts(
    torch.tensor([500.0, 60, 10, 2], dtype=torch.float64),
    torch.tensor([500.0, 940, 990, 998], dtype=torch.float64),
)


def options(entry: dict) -> dict[str, Any]:
    values = dict(entry["params"])
    if "disable_torch_grad_focal_loss" in values:
        values["detach_focus"] = values.pop("disable_torch_grad_focal_loss")
    values.pop("epoch", None)
    return values


@pytest.mark.parametrize("entry", TABLE, ids=lambda entry: f"{entry['loss']}-{entry['params']}")
def test_equals_the_authors_code(entry: dict) -> None:
    loss = build_loss(entry["loss"], options(entry), reduction="sum")
    loss.set_epoch(entry["params"].get("epoch", 0))
    unclipped = entry["params"].get("clip", 0.05) == 0
    compared = 0
    for logit, target, value, slope in entry["rows"]:
        if entry["loss"] not in ("hill", "splc") and (
            logit < -CLAMPED if target else logit > CLAMPED and unclipped
        ):
            continue
        x = torch.tensor([[float(logit)]], dtype=torch.float64, requires_grad=True)
        out = loss(x, torch.tensor([[float(target)]], dtype=torch.float64))
        out.backward()
        assert x.grad is not None
        assert out.item() == pytest.approx(value, rel=1e-6, abs=1e-15)
        assert x.grad.item() == pytest.approx(slope, rel=1e-6, abs=1e-15)
        compared += 1
    assert compared >= 28


@pytest.fixture(scope="module")
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = 3 * torch.randn(32, 4, generator=generator, dtype=torch.float64)
    return x, (torch.rand(32, 4, generator=generator) < 0.3).double()


def value(name: str, batch: tuple[torch.Tensor, torch.Tensor], epoch: int = 0, **options: Any) -> float:
    loss = build_loss(name, options, THRESHOLD_METRICS)
    loss.set_epoch(epoch)
    return loss(*batch).item()


def test_bce(batch) -> None:
    x, y = batch
    assert value("bce", batch) == pytest.approx(F.binary_cross_entropy_with_logits(x, y).item(), rel=1e-12)
    weighted = F.binary_cross_entropy_with_logits(
        x, y, pos_weight=THRESHOLD_METRICS.negatives / THRESHOLD_METRICS.positives
    )
    assert value("bce", batch, pos_weight="balanced") == pytest.approx(weighted.item(), rel=1e-12)


def test_focal(batch) -> None:
    x, y = batch
    bce = F.binary_cross_entropy_with_logits(x, y, reduction="none")
    plain = (1 - torch.exp(-bce)) ** 2 * bce
    assert value("focal", batch) == pytest.approx(plain.mean().item(), rel=1e-9)
    balanced = plain * torch.where(y > 0, 0.25, 0.75)
    assert value("focal", batch, alpha=0.25) == pytest.approx(balanced.mean().item(), rel=1e-9)


def test_class_balanced(batch) -> None:
    x, y = batch
    weights = [(1 - 0.9999) / (1 - 0.9999**n) for n in THRESHOLD_METRICS.positives.tolist()]
    weight = torch.tensor(weights, dtype=torch.float64) * 4 / sum(weights)
    plain = F.binary_cross_entropy_with_logits(x, y, weight=weight.expand_as(x))
    assert value("cb", batch) == pytest.approx(plain.item(), rel=1e-9)


def test_class_weighted_asl(batch) -> None:
    x, y = batch
    prevalence = THRESHOLD_METRICS.positives / (THRESHOLD_METRICS.positives + THRESHOLD_METRICS.negatives)
    p = torch.sigmoid(x)
    q = (1 - p + 0.05).clamp(max=1)
    loss = -torch.where(
        y > 0,
        torch.exp(1 - prevalence) * (1 - p) * torch.log(p),
        torch.exp(prevalence) * (1 - q) ** 4 * torch.log(q),
    )
    assert value("cw_asl", batch) == pytest.approx(loss.mean().item(), rel=1e-9)


def test_distribution_balanced(batch) -> None:
    x, y = batch
    n, total = THRESHOLD_METRICS.positives, 1000.0
    rate = (1 / n) / (y / n).sum(1, keepdim=True)
    weight = torch.sigmoid(10 * (rate - 0.2)) + 0.1
    z = x - torch.log(total / n - 1) * 0.05 / 2
    z = torch.where(y > 0, z, 2 * z)
    weight = torch.where(y > 0, weight, weight / 2)
    bce = F.binary_cross_entropy_with_logits(z, y, reduction="none")
    plain = 2 * (1 - torch.exp(-bce)) ** 2 * weight * bce
    assert value("db", batch) == pytest.approx(plain.mean().item(), rel=1e-9)


def test_ldam_and_its_deferred_weights(batch) -> None:
    x, y = batch
    margins = 0.5 * (2 / THRESHOLD_METRICS.positives) ** 0.25
    plain = F.binary_cross_entropy_with_logits(x - margins * y, y, reduction="none")
    assert value("ldam", batch, defer_epoch=2, epoch=1) == pytest.approx(plain.mean().item(), rel=1e-9)
    weights = (1 - 0.9999) / (1 - 0.9999**THRESHOLD_METRICS.positives)
    late = (plain * weights / weights.mean()).mean()
    assert value("ldam", batch, defer_epoch=2, epoch=2) == pytest.approx(late.item(), rel=1e-9)


def test_multi_focal_modifier(batch) -> None:
    x, y = batch
    p = torch.sigmoid(x)
    q = (1 - p + 0.05).clamp(max=1)
    share = THRESHOLD_METRICS.positives / THRESHOLD_METRICS.positives.sum()
    weight = (1 - torch.log(share / share.max())) ** (1 / 6)
    loss = -weight * torch.where(y > 0, torch.log(p), (1 - q) ** (4 + weight) * torch.log(q))
    assert value("mfm", batch) == pytest.approx(loss.mean().item(), rel=1e-9)


def test_multi_focal_modifier_with_cooccurrence(batch) -> None:
    x, y = batch[0], batch[1].clone()
    y[3] = 0
    together = torch.tensor(
        [[500.0, 9, 3, 0], [9, 60, 0, 1], [3, 0, 10, 0], [0, 1, 0, 2]], dtype=torch.float64
    )
    counts = THRESHOLD_METRICS._replace(together=together)
    shares = together - torch.diag(together.diag())
    shares = shares / shares.sum(0)
    share = THRESHOLD_METRICS.positives / THRESHOLD_METRICS.positives.max()
    weight = (1 - torch.log(share)) ** (1 / 3)
    total = 0.0
    for logits, labels in zip(x, y, strict=True):
        attention = shares[labels == 1].sum(0)
        if attention.sum() > 0:
            attention = attention / attention.sum()
        p = torch.sigmoid(logits)
        high = p * (1 - attention)
        q = (1 - p + 0.05).clamp(max=1)
        q = torch.where(attention > 0, 1.2 * q, q).clamp(max=1)
        value = torch.where(labels > 0, (1 - high) * torch.log(high), (1 - q) ** (3 + weight) * torch.log(q))
        total -= (weight * value).sum().item()
    options = {"cooccurrence": True, "gamma_pos": 1.0, "gamma_neg": 3.0, "power": 1 / 3}
    loss = build_loss("mfm", options, counts, "sum")
    assert loss(x, y).item() == pytest.approx(total, rel=1e-9)
    leaf = x.clone().requires_grad_()
    loss(leaf, y).backward()
    assert (leaf.grad[y == 1] <= 0).all()
    assert (leaf.grad[y == 0] >= 0).all()
    far = torch.full((2, 4), 1e4).requires_grad_()
    loss(far, torch.tensor([[1.0, 0, 0, 1], [0, 1, torch.nan, 0]])).backward()
    assert torch.isfinite(far.grad).all()
    with pytest.raises(ValueError, match=r"needs the images with two findings \(counts.together\)"):
        build_loss("mfm", options, THRESHOLD_METRICS)


def test_reflective_label_correction() -> None:
    x, y, reference = LOGITS, TARGETS, CONTENT["comic_rlc"]
    counts = ClassCounts(torch.tensor(reference["counts"]).double(), torch.full((3,), 1e4).double())
    loss = build_loss("rlc", {}, counts, "sum")
    # Before change_epoch it is MFM with a margin, times images / positives.
    mfm = build_loss("mfm", {"gamma_neg": 3.0}, counts, "sum")
    assert loss(x, y).item() == pytest.approx(mfm(x - y, y).item() * 4 / 5, rel=1e-12)
    loss.remember(x, y)
    assert not loss.corrected.any()
    loss.set_epoch(1)
    assert loss(x, y).item() == pytest.approx(reference["loss"], rel=1e-6)
    loss.remember(x, y)
    assert loss.corrected.tolist() == [0, 0, 1]
    assert loss(x, y).item() == pytest.approx(reference["second_batch_same_epoch"], rel=1e-6)
    again = build_loss("rlc", {}, counts, "sum")
    again.load_state_dict(loss.state_dict())
    again.set_epoch(1)
    assert again(x, y) == loss(x, y)
    loss.set_epoch(2)  # the counts begin again
    assert loss(x, y).item() == pytest.approx(reference["loss"], rel=1e-6)


def test_a_corrected_label_scores_above_the_mean_of_its_finding() -> None:
    x = torch.tensor([[3.0], [1.5], [3.0], [3.0]], dtype=torch.float64)  # the mean is above 0.818 = σ(1.5)
    loss = build_loss("rlc", {}, ClassCounts(torch.ones(1), torch.ones(1)))
    loss.set_epoch(1)
    leaf = x.requires_grad_()
    (slope,) = torch.autograd.grad(loss(leaf, torch.zeros(4, 1)), leaf)
    assert (slope[[0, 2, 3]] < 0).all()
    assert slope[1] > 0


def test_two_way(batch) -> None:
    x, y = batch

    def contrasts(logits: list[list[float]], labels: list[list[float]]) -> list[float]:
        found = []
        for row, marks in zip(logits, labels, strict=True):
            if any(marks):
                pull = 4 * math.log(sum(math.exp(-a / 4) for a, b in zip(row, marks, strict=True) if b))
                pushes = [math.exp(a) for a, b in zip(row, marks, strict=True) if not b]
                found.append(math.log1p(math.exp(pull) * sum(pushes)) if pushes else 0.0)
        return found

    rows, columns = contrasts(x.tolist(), y.tolist()), contrasts(x.T.tolist(), y.T.tolist())
    plain = sum(rows) / len(rows) + sum(columns) / len(columns)
    assert value("two_way", batch) == pytest.approx(plain, rel=1e-9)


def test_zlpr(batch) -> None:
    x, y = batch
    plain = torch.log1p((x.exp() * (1 - y)).sum(1)) + torch.log1p(((-x).exp() * y).sum(1))
    assert value("zlpr", batch) == pytest.approx(plain.mean().item(), rel=1e-12)
