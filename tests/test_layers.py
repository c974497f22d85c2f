"""The picture of the layers is that of the imports."""

import pytest
from conftest import ROOT

from docs import layers

# d imports all, b and c import a.
DIAMOND = {"a": set(), "b": {"a"}, "c": {"a"}, "d": {"a", "b", "c"}}


def test_the_picture_is_that_of_the_imports() -> None:
    assert (ROOT / "docs/layers.svg").read_text() == layers.draw(layers.graph()), (
        "docs/layers.svg is out of date: python docs/layers.py"
    )


def test_a_package_stands_above_those_that_it_imports() -> None:
    assert layers.levels(DIAMOND) == {"a": 0, "b": 1, "c": 1, "d": 2}
    with pytest.raises(ValueError, match="in a circle: b, c"):
        layers.levels({"a": set(), "b": {"c"}, "c": {"b"}})


def test_arrows_that_follow_from_others_are_left_out() -> None:
    assert layers.shortest(DIAMOND) == [("b", "a"), ("c", "a"), ("d", "b"), ("d", "c")]


def test_imports_are_found_wherever_they_stand() -> None:
    found = set(layers.imports())
    assert ("ral.files", "ral.errors") in found
    assert ("tasks.train", "ral.runs") in found  # `from ral import runs`
    assert ("tasks.train", "ral.launch") in found  # within a function
    assert layers.package_of("ral.losses.ral") == "losses"
    assert layers.package_of("ral.files") == layers.package_of("ral") == "base"
    assert layers.package_of("tasks.train") == "tasks"


def test_long_arrows_have_a_lane_in_the_rows_that_they_pass() -> None:
    packages = {"a": set(), "b": {"a"}, "c": {"b"}, "d": {"a"}, "e": {"c", "d"}}
    rows, paths = layers.arrange(layers.levels(packages), layers.shortest(packages))
    assert [sorted(row) for row in rows] == [["a"], ["b", "d"], ["c", "e>d@2"], ["e"]]
    assert ["e", "e>d@2", "d"] in paths
