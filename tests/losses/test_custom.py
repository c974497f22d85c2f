"""The user's own loss: what is checked before it is trained with."""

from pathlib import Path

import pytest
import torch

from ral.errors import UserError
from ral.losses import LOSSES, ClassCounts, build_loss
from ral.losses.custom import check_loss

COUNTS = ClassCounts(torch.tensor([5.0, 9.0, 2.0]).double(), torch.tensor([50.0, 40.0, 60.0]).double())
HEAD = """
import torch
import torch.nn.functional as F
from pydantic import Field
from ral.config.base import Section
from ral.losses.base import Loss, known_labels, reduce

class Options(Section):
    smoothing: float = Field(default=0.0, ge=0)

class Mine(Loss[Options]):
    options_model = Options
    {attributes}
    def forward(self, logits, targets):
        x, positive, known = known_labels(logits, targets)
        loss = F.binary_cross_entropy_with_logits(x, positive.float(), reduction="none")
        {end}
"""
GOOD = "return reduce(loss, known, self.reduction)"


def write(folder: Path, number: int, end: str = GOOD, attributes: str = "") -> str:
    """Write a loss into a module of its own, because Python remembers modules by name; returns the class path."""
    (folder / f"loss_{number}.py").write_text(HEAD.format(end=end, attributes=attributes))
    return f"loss_{number}:Mine"


@pytest.fixture(autouse=True)
def _project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)


def build(path: str, **options: object) -> object:
    return build_loss("custom", {"class_path": path, "options": options}, COUNTS, "sum")


def test_an_own_loss_gives_the_values_of_the_same_loss_here(tmp_path: Path) -> None:
    own, bce = build(write(tmp_path, 0)), build_loss("bce", {}, COUNTS, "sum")
    logits = torch.linspace(-3, 3, 12).reshape(4, 3)
    targets = torch.tensor([[1, 0, torch.nan]] * 4)
    assert torch.allclose(own(logits, targets), bce(logits, targets))
    assert own.reduction == "sum"


WRONG = {
    "no reduction": ("return loss", "", r"forward returns shape \(6, 3\) instead of shape \(\)"),
    "one value only": ("return loss.sum()", "", r"reduction `none` forward returns shape \(\) .*by_label = False"),
    "no tensor": ("return 1.0", "", "returns float instead"),
    "not finite": ("return reduce(loss / 0, known, self.reduction)", "", "not finite"),
    "unknown labels count": ("return reduce(loss, torch.ones_like(known), self.reduction)", "", "unknown labels .NaN. have a gradient"),
    "no gradient": ("return reduce(loss.detach(), known, self.reduction)", "", "has no gradient"),
    "images act on each other": (
        "loss = loss * loss.mean()\n        return reduce(loss, known, self.reduction)", "", "set separable = False",
    ),
    "an exception": ("return loss[99]", "", r"line 17: IndexError"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_loss_is_refused(tmp_path: Path, name: str) -> None:
    end, attributes, words = WRONG[name]
    path = write(tmp_path, 1 + list(WRONG).index(name), end, attributes)
    with pytest.raises(UserError, match=words) as caught:
        build(path)
    assert str(caught.value).startswith(f"loss.custom.class_path: {path}: ")


def test_attributes_say_what_a_loss_is(tmp_path: Path) -> None:
    end = "loss = loss[known]; return (loss * loss.mean()).sum()"
    loss = build(write(tmp_path, 50, end, "by_label = separable = False"))
    assert not loss.separable


@pytest.mark.parametrize(
    ("options", "words"),
    [({"smooth": 1.0}, r"smooth: .*Options: smoothing"), ({"smoothing": -1.0}, "greater than or equal")],
)
def test_a_wrong_option_is_refused(tmp_path: Path, options: dict, words: str) -> None:
    with pytest.raises(UserError, match=rf"loss\.custom\.options: .*{words}"):
        build(write(tmp_path, 60 + len(options) + ("smooth" in options)), **options)


def test_a_loss_without_options_needs_no_model(tmp_path: Path) -> None:
    path = write(tmp_path, 70, attributes="")
    file = tmp_path / "loss_70.py"
    file.write_text(file.read_text().replace("options_model = Options", ""))
    build(path)
    with pytest.raises(UserError, match="Options: none"):
        build(path, smoothing=0.1)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_here_passes_the_check(name: str) -> None:
    check_loss(build_loss(name, {}, COUNTS), 3)


def test_the_check_leaves_torch_as_it_was(tmp_path: Path) -> None:
    end = "return reduce(loss * (1 + 0 * torch.rand(1)), known, self.reduction)"
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    build(write(tmp_path, 80, end))
    assert torch.equal(torch.rand(2), expected)
