"""Adversarial training: the attack, its losses, and the contract of the global batch."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn
from trainings import BATCH_NORM, SEPARABLE, TRAIN, history, outputs, params, steps, train

from ral.config.losses import LossConfig
from ral.config.train import AdversarialConfig, TrainConfig
from ral.data.dataset import Dataset, open_dataset
from ral.errors import UserError
from ral.inference.prefetch import MicroBatch
from ral.models import Network
from ral.models.pgd import gray_bounds, pgd
from ral.training.adversarial import Adversary, bernoulli_divergence, random_starts
from ral.training.batch_loss import BatchLoss
from ral.training.phase import build_network

CPU = torch.device("cpu")
EPS = {"eps": 4.0, "steps": 2}


class Pixels:
    """Statistics of pixels."""

    pixel_mean, pixel_deviation = 120.0, 50.0


class Linear(nn.Module):
    """A linear model of pixels in double precision; the changed images reach the same worst case in one step."""

    def __init__(self, findings: int, pixels: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.weight = nn.Parameter(torch.randn(pixels, findings, generator=generator, dtype=torch.float64))

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ self.weight


@pytest.fixture(scope="module")
def dataset(prepared: Path) -> Dataset:
    return open_dataset(prepared)


def gray(levels: Tensor) -> Tensor:
    """Gray levels, standardised."""
    return (levels - Pixels.pixel_mean) / Pixels.pixel_deviation


def levels(images: Tensor) -> Tensor:
    """Standardised images in gray levels."""
    return images * Pixels.pixel_deviation + Pixels.pixel_mean


def batch(targets: Tensor, mixup: float | None = None, first: int = 0) -> MicroBatch:
    empty = torch.empty(0)
    images = len(targets) if mixup is None else len(targets) // 2
    known = float((~targets.isnan()).sum())
    return MicroBatch(0, empty, targets, empty, known, first=first, total=images, seed=0, mixup=mixup)


def test_a_change_stays_within_gray_levels() -> None:
    pixels = torch.tensor([[[[0.0, 1.0], [254.5, 100.0]]]])
    bounds = gray_bounds(gray(pixels), 2.0, Pixels)
    torch.testing.assert_close(
        levels(bounds.low), torch.tensor([[[[0.0, 0.0], [252.5, 98.0]]]]), atol=1e-4, rtol=0
    )
    torch.testing.assert_close(
        levels(bounds.high), torch.tensor([[[[2.0, 3.0], [255.0, 102.0]]]]), atol=1e-4, rtol=0
    )
    images = gray(torch.rand(3, 1, 5, 5, generator=torch.Generator().manual_seed(0)) * 255)
    none = gray_bounds(images, 0.0, Pixels)
    assert torch.equal(none.low, images)
    assert torch.equal(none.high, images)


def test_the_attack_on_a_linear_model_is_its_closed_form() -> None:
    """With one label y = ±1, the worst loss within eps is softplus(−y z + eps |w|₁)."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(40, 216, (6, 1, 4, 4), generator=generator).double()
    sign = torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0, -1.0], dtype=torch.float64)
    model, images, eps = Linear(1, 16), gray(pixels), 3.0
    bounds = gray_bounds(images, eps, Pixels)
    radius = eps / Pixels.pixel_deviation
    changed = pgd(lambda x: F.softplus(-sign * model(x)[:, 0]).sum(), images, bounds, 4, radius)
    worst = F.softplus(-sign * model(images)[:, 0] + radius * model.weight.abs().sum())
    attained = F.softplus(-sign * model(changed)[:, 0])
    torch.testing.assert_close(attained, worst, rtol=4e-16, atol=4e-16)
    one_step = pgd(lambda x: F.softplus(-sign * model(x)[:, 0]).sum(), images, bounds, 1, radius / 2)
    assert (F.softplus(-sign * model(one_step)[:, 0]) < worst).all()


def test_the_divergence_is_that_of_bernoulli_variables() -> None:
    first, second = (
        torch.tensor([-30.0, -2.0, 0.3, 4.0]).double(),
        torch.tensor([-28.0, 1.0, 0.3, -4.0]).double(),
    )
    p, q = torch.sigmoid(first), torch.sigmoid(second)
    expected = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    torch.testing.assert_close(bernoulli_divergence(first, second), expected, rtol=1e-9, atol=1e-15)


def test_random_starts_depend_on_the_position_only() -> None:
    shape = torch.Size((1, 3, 3))
    whole = random_starts(range(8), shape, 5)
    parts = torch.cat([random_starts(range(3), shape, 5), random_starts(range(3, 8), shape, 5)])
    assert torch.equal(whole, parts)
    assert len(whole.flatten(1).unique(dim=0)) == 8
    assert not torch.equal(whole, random_starts(range(8), shape, 6))


def build(dataset: Dataset, network: Any, loss: str = "bce", **options: Any) -> Adversary:
    section = LossConfig.model_validate({"name": loss, "comp_sum": {"tau_pos": 1.0, "tau_neg": 1.0}})
    config = AdversarialConfig.model_validate(options)
    return Adversary(config, network, BatchLoss(params(loss=section), dataset, CPU), Pixels)


@pytest.fixture(scope="module")
def linear(dataset: Dataset) -> Network:
    size, findings = 16, len(dataset.findings)
    model: Any = Linear(findings, size).float()
    model.use_bfloat16 = False
    return model


@pytest.fixture(scope="module")
def images() -> Tensor:
    return gray(torch.randint(0, 256, (10, 1, 4, 4), generator=torch.Generator().manual_seed(2)).float())


@pytest.fixture(scope="module")
def targets(dataset: Dataset) -> Tensor:
    found = torch.from_numpy(dataset.targets()[dataset.rows("train")[:10]]).clone()
    found[3:5, 1:8] = torch.nan
    return found


@pytest.mark.parametrize("loss", ["pgd", "trades", "comp_sum"])
def test_the_attack_raises_what_it_should_and_stays_in_bounds(
    dataset: Dataset, linear: Network, images: Tensor, targets: Tensor, loss: str
) -> None:
    adversary = build(dataset, linear, loss=("comp_sum" if loss == "comp_sum" else "bce"), eps=3.0, steps=4)
    adversary.config = AdversarialConfig(eps=3.0, steps=4, loss=loss)  # type: ignore[arg-type]
    changed = adversary.attack(images, batch(targets), 7)
    assert (levels(changed) - levels(images)).abs().max() <= 3.0 + 1e-4
    assert levels(changed).min() >= -1e-4
    assert levels(changed).max() <= 255 + 1e-4
    bounds = gray_bounds(images, 3.0, Pixels)
    start = bounds.low + random_starts(range(10), images.shape[1:], 7) * (bounds.high - bounds.low)

    def height(x: Tensor) -> float:
        if loss == "pgd":
            return adversary.loss.contribution(linear(x), batch(targets)).item()
        return adversary._distance(linear(images), linear(x), batch(targets)).item()

    assert height(changed) > height(start) + 1e-4
    assert height(start) > height(images) or loss == "pgd"


@pytest.mark.parametrize("loss", ["pgd", "trades", "comp_sum"])
def test_the_loss_is_the_sum_of_its_terms(
    dataset: Dataset, linear: Network, images: Tensor, targets: Tensor, loss: str
) -> None:
    weight = 0.3 if loss == "pgd" else 2.5
    adversary = build(dataset, linear, eps=3.0, steps=2)
    adversary.config = AdversarialConfig(eps=3.0, steps=2, loss=loss, weight=weight)  # type: ignore[arg-type]
    value = adversary.contribution(linear, images, batch(targets), 7)
    clean, attacked = linear(images), linear(adversary.attack(images, batch(targets), 7))
    known = ~targets.isnan()

    def bce(logits: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(logits[known], targets[known])

    if loss == "pgd":
        expected = 0.7 * bce(clean) + 0.3 * bce(attacked)
    elif loss == "trades":
        p, q = torch.sigmoid(clean)[known].double(), torch.sigmoid(attacked)[known].double()
        divergence = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
        expected = bce(clean) + 2.5 * divergence.mean().float()
    else:
        expected = bce(clean) + 2.5 * (attacked - clean).abs()[known].mean()
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-6)
    assert value.requires_grad


@pytest.mark.parametrize("seed", range(5))
def test_smooth_adversarial_comp_sum_bounds_the_adversarial_loss(
    dataset: Dataset, linear: Network, images: Tensor, targets: Tensor, seed: int
) -> None:
    """With ν = 1 it is at least the cross-entropy of any images within eps, as log(1 + eˣ) is 1-Lipschitz."""
    gentle: Any = Linear(targets.shape[1], 16).float()
    gentle.use_bfloat16 = False
    gentle.weight.data *= 0.2
    adversary = build(dataset, gentle, loss="comp_sum", eps=5.0, steps=5)
    adversary.config = AdversarialConfig(eps=5.0, steps=5, loss="pgd")
    worst = adversary.contribution(gentle, images, batch(targets), seed)
    adversary.config = AdversarialConfig(eps=5.0, steps=5, loss="comp_sum")
    smooth = adversary.contribution(gentle, images, batch(targets), seed)
    clean = adversary.loss.contribution(gentle(images), batch(targets))
    assert smooth > worst > clean


def test_mixed_images_are_attacked_for_both_labels(
    dataset: Dataset, linear: Network, images: Tensor, targets: Tensor
) -> None:
    both = batch(torch.cat([targets, targets.roll(3, 0)]), mixup=0.7)
    adversary = build(dataset, linear, eps=2.0)
    for loss in ("pgd", "trades", "comp_sum"):
        adversary.config = AdversarialConfig(eps=2.0, loss=loss)  # type: ignore[arg-type]
        value = adversary.contribution(linear, images, both, 0)
        assert value > adversary.loss.contribution(linear(images), both)


def test_an_attack_is_the_same_in_any_micro_batch(prepared: Path, dataset: Dataset) -> None:
    """Batch norm in evaluation mode: with batch statistics, an attack would depend on the other images."""
    network = build_network(params(BATCH_NORM), len(dataset.findings)).train()
    adversary = build(dataset, network, eps=2.0, steps=2)
    rows = dataset.rows("train")[:6]
    found = torch.from_numpy(dataset.targets(rows))
    pixels = gray(torch.from_numpy(dataset.gather(rows)).unsqueeze(1).float())
    whole = adversary.attack(pixels, batch(found), 3)
    parts = [adversary.attack(pixels[rows], batch(found[rows], first=rows.start), 3) for rows in (slice(0, 2), slice(2, 6))]  # fmt: skip
    changed = (whole - torch.cat(parts)).abs() > 1e-5
    assert changed.float().mean() < 0.01  # the sign of a gradient near 0 may change by rounding


@pytest.mark.parametrize("model", [BATCH_NORM, SEPARABLE])
def test_the_network_is_left_as_it_was(dataset: Dataset, model: Any) -> None:
    network = build_network(params(model, precision="bfloat16"), len(dataset.findings)).train()
    frozen = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    frozen.eval()
    modes = [module.training for module in network.modules()]
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    adversary = build(dataset, network, **EPS)
    found = torch.from_numpy(dataset.targets(dataset.rows("train")[:4]))
    images = gray(torch.randint(0, 256, (4, 1, 32, 32)).float())
    state = torch.random.get_rng_state()
    changed = adversary.attack(images, batch(found), 1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not torch.equal(changed, images)
    assert network.use_bfloat16
    network.use_bfloat16 = False
    assert torch.equal(adversary.attack(images, batch(found), 1), changed)  # in float32 anyway
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())


def test_losses_over_the_batch_are_refused(dataset: Dataset, linear: Network) -> None:
    with pytest.raises(UserError, match=r"train\.adversarial needs a loss that is a sum over images"):
        build(dataset, linear, loss="anyloss")


@pytest.mark.parametrize(
    ("adversarial", "zero_stage", "says"),
    [
        ({"weight": 6.0}, 0, "weight (6) is a share with loss: pgd; at most 1"),
        ({"eps": -1.0}, 0, "greater than or equal to 0"),
        ({"loss": "fgsm"}, 0, "'pgd', 'trades' or 'comp_sum'"),
        ({}, 3, "adversarial needs zero_stage 0, 1 or 2"),
    ],
)
def test_what_cannot_work_is_refused(adversarial: dict, zero_stage: int, says: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(says)):
        TrainConfig.model_validate(TRAIN | {"adversarial": adversarial, "zero_stage": zero_stage})


def test_the_default_step_reaches_the_bound() -> None:
    config = AdversarialConfig(eps=2.0, steps=4)
    assert config.step_levels * config.steps == 5.0
    assert AdversarialConfig(step=0.5).step_levels == 0.5


# Trainings.


def test_eps_0_is_ordinary_training(prepared: Path, tmp_path: Path, two_epochs: Path) -> None:
    zero = train(prepared, tmp_path / "zero", adversarial={"eps": 0.0, "loss": "trades"})
    assert outputs(zero) == outputs(two_epochs)


@pytest.mark.parametrize(
    ("loss", "processes", "changes"),
    [
        ("pgd", 2, {"micro_batch": 8}),
        *(
            pytest.param(loss, processes, changes, marks=pytest.mark.long)
            for loss in ("pgd", "trades", "comp_sum")
            for processes, changes in (
                (1, {"micro_batch": 8}),
                (2, {"zero_stage": 1}),
                (2, {"zero_stage": 2, "micro_batch": 4}),
                (4, {"mixup": 0.4}),
            )
        ),
    ],
)
def test_sharing_the_batch_out_changes_only_rounding(
    prepared: Path, tmp_path: Path, loss: str, processes: int, changes: dict
) -> None:
    both: dict = {"epochs": 2, "adversarial": EPS | {"loss": loss}}
    both |= {key: changes[key] for key in changes if key == "mixup"}
    one = train(prepared, tmp_path / "one", **both)
    shared = train(prepared, tmp_path / "shared", processes, **both | changes)
    # The other two rest on differences of logits, in which rounding weighs more and turns more signs.
    np.testing.assert_allclose(steps(shared), steps(one), rtol=1e-4 if loss == "pgd" else 1e-3)
    assert (steps(one) != steps(train(prepared, tmp_path / "plain", epochs=2))).all()


@pytest.mark.long
@pytest.mark.parametrize(("loss", "tolerance"), [("pgd", 2e-3), ("trades", 0.05)])
def test_batch_norm_keeps_the_contract_over_processes(
    prepared: Path, tmp_path: Path, loss: str, tolerance: float
) -> None:
    """The divergence rests on differences of logits, in which rounding weighs more and turns more signs."""
    changes: Any = {"model": BATCH_NORM, "epochs": 1, "adversarial": EPS | {"loss": loss}}
    one, two = (train(prepared, tmp_path / str(n), n, **changes) for n in (1, 2))
    np.testing.assert_allclose(steps(two), steps(one), rtol=tolerance)


@pytest.mark.long
@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "bfloat16"},
        {"compile": True},
        {"label_smoothing": 0.1, "reweight": {"from_epoch": 1}},
        {"classifier": {"epochs": 1, "learning_rate": 1e-3}},
        {"model": SEPARABLE.model_copy(update={"gradient_checkpointing": True})},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_it_works_with_other_options(prepared: Path, tmp_path: Path, changes: Any) -> None:
    done = train(prepared, tmp_path / "out", adversarial=EPS | {"loss": "trades"}, **changes)
    assert np.isfinite(steps(done)).all()
    assert (history(done)["skipped_steps"] == 0).all()
    again = train(prepared, tmp_path / "again", adversarial=EPS | {"loss": "trades"}, **changes)
    assert outputs(again) == outputs(done)
