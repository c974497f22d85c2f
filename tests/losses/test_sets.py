"""Losses of a finding over all images of a batch: reference values, the direction of slopes, running sums."""

import itertools
from typing import Any

import pytest
import torch
from loss_references import LOGITS, TARGETS, batch, gradient, rows
from sklearn.metrics import balanced_accuracy_score, f1_score, fbeta_score, recall_score
from torch import Tensor

from ral.losses import ClassCounts, Loss, build_loss

COUNTS = ClassCounts(
    torch.tensor([40.0, 8, 1], dtype=torch.float64), torch.tensor([60.0, 92, 99], dtype=torch.float64)
)
FORMS: list[tuple[str, dict[str, Any]]] = [
    *(
        ("dice", {"form": form, "alpha": alpha, "square": square})
        for form, alpha, square in itertools.product(("set", "label"), (0.0, 0.01, 1.0), (False, True))
    ),
    *(
        ("anyloss", {"metric": metric, "amplify": amplify, "mix": mix})
        for metric, amplify, mix in itertools.product(("f", "gmean", "bacc"), (10.0, 73.0), (0.5, 1.0))
    ),
]


def draw(rows: int = 24, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = 4 * torch.randn(rows, 3, generator=generator, dtype=torch.float64)
    return x, (torch.rand(rows, 3, generator=generator) < 0.3).double()


def slopes(loss: Loss[Any], x: Tensor, y: Tensor) -> Tensor:
    leaf = x.detach().clone().requires_grad_()
    (found,) = torch.autograd.grad(loss(leaf, y).sum(), leaf)
    return found


@pytest.mark.parametrize(("square", "alpha"), itertools.product((False, True), (0.0, 0.01, 1.0)))
def test_dice_equals_the_reference(square: bool, alpha: float) -> None:
    options = {"square": square, "alpha": alpha, "detach_focus": False}
    check(build_loss("dice", options, COUNTS), f"dice_set alpha={alpha} square={square}")


@pytest.mark.parametrize(("metric", "amplify"), itertools.product(("f", "gmean", "bacc"), (10, 73)))
def test_anyloss_equals_the_reference(metric: str, amplify: int) -> None:
    options = {"metric": metric, "amplify": amplify, "mix": 1.0}
    check(build_loss("anyloss", options, COUNTS), f"anyloss {metric} L={amplify} ")


def check(loss: Loss[Any], name: str) -> None:
    entry = batch(name)
    value, slope = gradient(loss, LOGITS, TARGETS)
    assert value == pytest.approx(entry["loss"], rel=1e-6)
    torch.testing.assert_close(slope, torch.tensor(entry["grad"], dtype=torch.float64), rtol=1e-6, atol=1e-15)


@pytest.mark.parametrize("entry", rows("dice_per_example"), ids=lambda entry: str(entry["params"]))
def test_dice_of_each_label_equals_the_reference(entry: dict) -> None:
    logits, targets, values, wanted = torch.tensor(entry["rows"], dtype=torch.float64).T[..., None]
    options = {name: entry["params"][name] for name in ("alpha", "smooth")}
    options |= {"form": "label", "square": False, "detach_focus": entry["params"]["detach_weight"]}
    loss = build_loss("dice", options, reduction="none")
    torch.testing.assert_close(loss(logits, targets), values, rtol=1e-6, atol=1e-15)
    torch.testing.assert_close(slopes(loss, logits, targets), wanted, rtol=1e-6, atol=1e-15)


@pytest.mark.parametrize(("name", "options"), FORMS, ids=str)
def test_a_negative_is_never_pushed_up_and_a_positive_never_down(name: str, options: dict) -> None:
    for seed in range(20):
        x, y = draw(seed=seed)
        x[0] = torch.tensor([-30.0, 0.0, 30.0])
        found = slopes(build_loss(name, options), x, y)
        assert (found[y == 1] <= 0).all()
        assert (found[y == 0] >= 0).all()
        assert found.any()


def test_the_published_dice_pushes_confident_negatives_up() -> None:
    x, y = torch.tensor([[2.0], [0.0]]), torch.tensor([[0.0], [1.0]])
    for form in ("set", "label"):
        published = build_loss("dice", {"form": form, "alpha": 1.0, "detach_focus": False})
        assert slopes(published, x, y)[0] < 0


def test_plain_dice_is_one_minus_soft_f1() -> None:
    x, y = draw()
    p = torch.sigmoid(x)
    soft = 2 * (p * y).sum(0) / (p.sum(0) + y.sum(0))
    dice = build_loss("dice", {"alpha": 0.0, "square": False, "smooth": 1e-9}, reduction="none")
    torch.testing.assert_close(dice(x, y), 1 - soft)


@pytest.mark.parametrize(
    ("options", "metric"),
    [
        ({"metric": "f"}, f1_score),
        ({"metric": "f", "beta": 2.0}, lambda y, p: fbeta_score(y, p, beta=2)),
        ({"metric": "bacc"}, balanced_accuracy_score),
        (
            {"metric": "gmean"},
            lambda y, p: (recall_score(y, p) * recall_score(y, p, pos_label=0)) ** 0.5,
        ),
    ],
    ids=["f1", "f2", "bacc", "gmean"],
)
def test_a_steep_decision_is_the_hard_metric(options: dict, metric: Any) -> None:
    x, y = draw(200)
    found = build_loss("anyloss", {**options, "mix": 1.0, "amplify": 1e6}, reduction="none")(x, y)
    for c in range(3):
        assert found[c].item() == pytest.approx(1 - metric(y[:, c].numpy(), (x[:, c] > 0).numpy()), abs=1e-9)


def test_without_the_metric_it_is_cross_entropy() -> None:
    x, y = draw()
    anyloss = build_loss("anyloss", {"mix": 0.0})
    torch.testing.assert_close(anyloss(x, y), build_loss("bce")(x, y))


@pytest.mark.parametrize(
    ("name", "options"), [form for form in FORMS if form[1].get("form") != "label"], ids=str
)
def test_running_sums_stand_in_for_what_a_batch_lacks(name: str, options: dict) -> None:
    loss = build_loss(name, {**options, "mix": 1.0} if name == "anyloss" else options, COUNTS)
    x, y = draw()
    lacking = y.clone()
    lacking[:, 2] = 0
    assert not slopes(loss, x, lacking)[:, 2].any()  # no batch has had this finding
    for seed in range(1, 4):
        loss.remember(*draw(seed=seed))
    found = slopes(loss, x, lacking)
    assert (found[:, 2] >= 0).all()
    assert found[:, 2].any()
    # They change nothing for the findings that the batch has.
    fresh = build_loss(name, {**options, "mix": 1.0} if name == "anyloss" else options, COUNTS)
    torch.testing.assert_close(slopes(loss, x, y), slopes(fresh, x, y))


def test_running_sums_are_the_mean_of_recent_batches_and_skip_what_is_not_finite() -> None:
    loss = build_loss("anyloss", {"memory": 0.5}, COUNTS)
    (x1, y1), (x2, y2) = draw(seed=1), draw(seed=2)
    loss.remember(x1, y1)
    loss.remember(x2, y2)
    assert loss.batches == 1.5
    torch.testing.assert_close(loss.running[0, 0] / loss.batches, ((y1.sum(0) + 2 * y2.sum(0)) / 3).float())
    before = {name: value.clone() for name, value in loss.state_dict().items()}
    loss.remember(torch.full_like(x1, torch.nan), y1)
    assert all(torch.equal(loss.state_dict()[name], value) for name, value in before.items())
    other = build_loss("anyloss", {"memory": 0.5}, COUNTS)
    other.load_state_dict(before)
    torch.testing.assert_close(other(x1, 0 * y1), loss(x1, 0 * y1))
    assert not build_loss("anyloss", {"memory": 0.0}, COUNTS).state_dict()


@pytest.mark.parametrize("name", ["ral", "focal", "cb", "db", "mfm", "two_way"])
def test_losses_without_a_state_have_none(name: str) -> None:
    assert not build_loss(name, {}, COUNTS).state_dict()
