"""The loss of a batch with smoothed labels, mixed images and adjusted logits."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from trainings import params

from ral.config.losses import LossConfig
from ral.data.dataset import Dataset, open_dataset
from ral.errors import UserError
from ral.inference.prefetch import MicroBatch
from ral.losses import ClassCounts, build_loss
from ral.losses.adjust import Adjusted
from ral.training.batch_loss import SCORED_POSITIVES, BatchLoss
from ral.training.batches import Batches
from ral.training.distributed import DistributedContext
from ral.training.plan import phases

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def dataset(prepared: Path) -> Dataset:
    return open_dataset(prepared)


@pytest.fixture(scope="module")
def logits(dataset: Dataset) -> Tensor:
    return 2 * torch.randn(12, len(dataset.findings), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def targets(dataset: Dataset) -> Tensor:
    found = torch.from_numpy(dataset.targets()[dataset.rows("train")[:12]]).clone()
    found[3, 1] = torch.nan
    return found


def prevalence(dataset: Dataset) -> Tensor:
    return ClassCounts.of(dataset.class_counts["train"], dataset.findings).prevalence.float()


def build(dataset: Dataset, loss: str = "bce", adjust: Any = "none", **changes: Any) -> BatchLoss:
    return BatchLoss(params(loss=LossConfig(name=loss, adjust=adjust), **changes), dataset, CPU)


def build_adjusted(dataset: Dataset, name: str) -> Adjusted:
    counts = ClassCounts.of(dataset.class_counts["train"], dataset.findings)
    return Adjusted(build_loss(name, {}, counts), counts, "static")


def batch(targets: Tensor, labels: float, mixup: float | None = None) -> MicroBatch:
    empty = torch.empty(0)
    images = len(targets) if mixup is None else len(targets) // 2
    return MicroBatch(0, empty, targets, empty, labels, first=0, total=images, seed=0, mixup=mixup)


def soft_bce(logits: Tensor, soft: Tensor) -> float:
    """Mean cross-entropy with soft labels, over those that are known."""
    known = ~soft.isnan()
    return F.binary_cross_entropy_with_logits(logits[known], soft[known]).item()


def test_smoothed_labels_are_mixed_with_the_prevalence(
    dataset: Dataset, logits: Tensor, targets: Tensor
) -> None:
    loss = build(dataset, label_smoothing=0.1)
    value = loss.contribution(logits, batch(targets, loss.divisor(targets)))
    soft = 0.9 * targets + 0.1 * prevalence(dataset)
    assert value.item() == pytest.approx(soft_bce(logits, soft), rel=1e-5)


def test_no_smoothing_is_the_loss_itself(dataset: Dataset, logits: Tensor, targets: Tensor) -> None:
    plain, off = build(dataset, "ral"), build(dataset, "ral", label_smoothing=0.0, mixup=0.0)
    one = plain.contribution(logits, batch(targets, 100.0))
    assert torch.equal(off.contribution(logits, batch(targets, 100.0)), one)
    little = build(dataset, "ral", label_smoothing=1e-6).contribution(logits, batch(targets, 100.0))
    assert little.item() == pytest.approx(one.item(), rel=1e-4)


def test_a_smoothed_label_has_its_least_loss_at_the_smoothed_score(dataset: Dataset) -> None:
    loss, rare = build(dataset, label_smoothing=0.2), prevalence(dataset)
    x = torch.linspace(-9, 9, 9001)[:, None].expand(-1, len(rare))
    for target in (0.0, 1.0):
        values = loss._smoothed(loss.loss(x, torch.full_like(x, target)), x, torch.full_like(x, target))
        best = torch.sigmoid(x[values.argmin(0), 0])
        torch.testing.assert_close(best, 0.8 * target + 0.2 * rare, rtol=2e-2, atol=1e-3)


def test_mixed_images_have_the_mean_of_both_losses(dataset: Dataset, logits: Tensor, targets: Tensor) -> None:
    loss = build(dataset)
    partners = targets.roll(5, 0)
    both = torch.cat([targets, partners])
    labels = loss.divisor(targets)
    value = loss.contribution(logits, batch(both, labels, mixup=0.7)).item()
    first, second = (loss.contribution(logits, batch(part, labels)).item() for part in (targets, partners))
    assert value == pytest.approx(0.7 * first + 0.3 * second, rel=1e-6)
    known = targets.nan_to_num(0), partners.nan_to_num(0)  # all labels known: the loss of the mixed labels
    value = loss.contribution(logits, batch(torch.cat(known), known[0].numel(), mixup=0.7)).item()
    assert value == pytest.approx(soft_bce(logits, 0.7 * known[0] + 0.3 * known[1]), rel=1e-5)


@pytest.mark.parametrize("name", ["two_way", "dice", "anyloss", "z_loss"])
def test_mixed_images_are_mixed_in_losses_over_the_batch(
    dataset: Dataset, logits: Tensor, targets: Tensor, name: str
) -> None:
    loss = build(dataset, name, adjust="static")
    partners = targets.roll(5, 0)
    leaf = logits.clone().requires_grad_()
    values = [build_adjusted(dataset, name)(leaf, part) for part in (targets, partners)]
    plain = 0.3 * values[0] + 0.7 * values[1]
    (wanted,) = torch.autograd.grad(plain, leaf)
    halves = [
        batch(torch.cat([targets[rows], partners[rows]]), 1.0, mixup=0.3)._replace(first=start, total=12)
        for start, rows in ((0, slice(0, 5)), (5, slice(5, 12)))
    ]
    chunks = [leaf[:5], leaf[5:]]
    whole = loss.over_batch(chunks, halves)
    total = sum(loss.contribution(chunk, half, whole) for chunk, half in zip(chunks, halves, strict=True))
    torch.testing.assert_close(total, plain)
    torch.testing.assert_close(torch.autograd.grad(total, leaf)[0], wanted)


@pytest.mark.parametrize("share", [0.3, 0.8])
def test_running_sums_follow_the_labels_with_the_larger_share(
    dataset: Dataset, logits: Tensor, targets: Tensor, share: float
) -> None:
    partners = targets.roll(5, 0)
    loss, plain = build(dataset, "anyloss"), build(dataset, "anyloss")
    loss.over_batch([logits], [batch(torch.cat([targets, partners]), 1.0, mixup=share)])
    plain.over_batch([logits], [batch(targets if share > 0.5 else partners, 1.0)])
    assert torch.equal(loss.state_dict()["running"], plain.state_dict()["running"])


@pytest.mark.parametrize(("loss", "key"), [("zlpr", "label_smoothing"), ("z_loss", "label_smoothing"), ("z_loss", "reweight")])  # fmt: skip
def test_a_loss_without_terms_per_label_is_refused(dataset: Dataset, loss: str, key: str) -> None:
    with pytest.raises(
        UserError, match=rf"train\.{key} needs a loss with one term per label; {loss} has none"
    ):
        build(dataset, loss, **{key: {"from_epoch": 1} if key == "reweight" else 0.1})


def test_adaptive_adjustment_learns_from_positive_training_images(dataset: Dataset) -> None:
    loss = build(dataset, adjust="adaptive")
    rows = loss.learns_from
    assert rows is not None
    assert set(rows) <= set(dataset.rows("train"))
    found = dataset.targets()[rows]
    every = dataset.targets()[dataset.rows("train")]
    for column, labels in zip(found.T, every.T, strict=True):
        assert (column == 1).sum() >= min(SCORED_POSITIVES, (labels == 1).sum())
    assert np.array_equal(rows, build(dataset, adjust="adaptive").learns_from)
    before = loss.state_dict()["prior"]
    loss.learn(np.where(found == 1, np.linspace(-1, 1, found.shape[1]), -5).astype(np.float32))
    after = loss.state_dict()["prior"]
    torch.testing.assert_close(after[-1], torch.tensor(1.0))
    assert (after.diff() > 0).all()
    assert not torch.equal(before, after)
    again = build(dataset, adjust="adaptive")
    again.load_state_dict({"prior": after})
    assert torch.equal(again.state_dict()["prior"], after)
    for adjust in ("none", "static"):
        assert build(dataset, adjust=adjust).learns_from is None
        assert not build(dataset, adjust=adjust).state_dict()


def in_any_order(rows: Tensor) -> Tensor:
    """A number for each row, ascending."""
    flat = rows.flatten(1).double()
    return (flat @ torch.arange(1, flat.shape[1] + 1).double()).sort().values


@pytest.mark.parametrize(("world", "micro_batch"), [(1, None), (2, 4), (4, 8)])
def test_partners_are_those_of_the_global_batch(
    dataset: Dataset, world: int, micro_batch: int | None
) -> None:
    """Whatever its process, an image has the same partner, share and augmentation, and partners look as they do alone."""

    def rows(world: int, micro_batch: int | None, mixup: float) -> list[MicroBatch]:
        section = params(mixup=mixup, micro_batch=micro_batch)
        loss = BatchLoss(section, dataset, CPU)
        found = []
        for rank in range(world):
            context = DistributedContext(rank, world, CPU)
            batches = Batches(phases(section.train)[0], section, dataset, loss, context)
            found += [part for part in batches.micro_batches(0, 0) if part.step == 1]
        return found

    (plain,) = rows(1, None, 0.0)
    parts = rows(world, micro_batch, 0.4)
    assert len({part.mixup for part in parts}) == 1
    (whole,) = rows(1, None, 0.4)
    assert parts[0].mixup == whole.mixup
    for name in ("images", "targets", "maps"):
        halves = [getattr(part, name).chunk(2) for part in parts]
        own, partners = (torch.cat(half) for half in zip(*halves, strict=True))
        assert torch.equal(own, getattr(plain, name))  # as without mixup
        assert torch.equal(torch.cat([own, partners]), getattr(whole, name))
        assert torch.equal(in_any_order(own), in_any_order(partners))
