"""A misspelt name is answered by the nearest allowed one."""

import pytest

from ral.labels import NIH_FINDINGS
from ral.suggest import did_you_mean, nearest


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("Efusion", ["Effusion"]),
        ("EFFUSION", ["Effusion"]),
        ("pleural thickening", ["Pleural_Thickening"]),
        ("xyz", []),
    ],
)
def test_nearest(name: str, near: list[str]) -> None:
    assert nearest(name, NIH_FINDINGS) == near


def test_several_names_come_nearest_first() -> None:
    allowed = ["resnet50", "resnet18", "vit_base", "resnet10t"]
    assert nearest("resnet18x", allowed, count=2) == ["resnet18", "resnet10t"]
    assert nearest("resnet18x", allowed, count=5, similar=0.9) == ["resnet18"]


def test_the_sentence() -> None:
    assert did_you_mean("epoch", ["batch_size", "epochs"]) == " Did you mean `epochs`?"
    assert did_you_mean("xyz", ["batch_size", "epochs"]) == ""
