"""The picture of the layers is that of the imports, and no import goes up or sideways."""

import ast
import graphlib
import re

import pytest
from conftest import ROOT

from docs import layers

# From low to high: a package imports from the layers below it, never from another of its own layer or from one above.
LAYERS = (
    {"base"},
    {"config"},
    {"losses", "models", "phantom", "compute", "launch"},
    {"data"},
    {"evaluation", "explain"},
    {"inference"},
    {"robustness"},
    {"training"},
    {"reporting", "release"},
    {"export", "external"},
    {"cli"},
    {"tasks"},
    {"flows"},
)
LAYER_OF = {name: number for number, names in enumerate(LAYERS) for name in names}

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


def test_no_import_goes_up_or_sideways() -> None:
    unknown = layers.graph().keys() - LAYER_OF.keys()
    assert not unknown, f"say in LAYERS, and in CONTRIBUTING.md, in which layer these are: {sorted(unknown)}"
    against = [
        f"{importing} imports {imported}"
        for importing, imported in sorted(set(layers.imports()))
        if layers.package_of(importing) != layers.package_of(imported)
        and LAYER_OF[layers.package_of(importing)] <= LAYER_OF[layers.package_of(imported)]
    ]
    assert not against, "\n".join(["imports from the same layer or one above:", *against])


def test_modules_import_in_no_circle() -> None:
    graph: dict[str, set[str]] = {}
    for path in (path for room in layers.ROOMS for path in (ROOT / room).rglob("*.py")):
        own = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                # `from ral.losses import terms` imports the module, not the package.
                inner = [f"{node.module}.{alias.name}" for alias in node.names]
                modules = [
                    name if (ROOT / f"{name.replace('.', '/')}.py").is_file() else node.module
                    for name in inner
                ]
                graph.setdefault(own, set()).update(
                    name for name in modules if name.split(".")[0] in layers.ROOMS
                )
    graphlib.TopologicalSorter({own: others - {own} for own, others in graph.items()}).prepare()


def test_the_contribution_guide_has_the_same_layers() -> None:
    guide = (ROOT / "CONTRIBUTING.md").read_text()
    rows = re.findall(r"^\| (\d+) \| (.*) \|$", guide, re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(len(LAYERS), 0, -1))
    told = [set(re.findall(r"`(\w+)`", names)) for _, names in reversed(rows)]
    assert told[1:] == list(LAYERS[1:])


def test_the_contribution_guide_names_files_and_names_that_exist() -> None:
    guide = (ROOT / "CONTRIBUTING.md").read_text()
    named = set(re.findall(r"`([\w.-]+(?:/[\w.-]+)*/?\.?(?:py|md|yaml|toml|/))`", guide))
    missing = {path for path in named if "NAME" not in path and not (ROOT / path).exists()}
    missing -= {"ral.toml"}  # the user's own
    assert not missing
    code = "\n".join(path.read_text() for room in layers.ROOMS for path in (ROOT / room).rglob("*.py"))
    code += "\n".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))
    for name in re.findall(r"`([A-Z]\w+|[a-z]+_[a-z_]+)`", guide):
        assert "NAME" in name or re.search(rf"\b{name}\b", code), (
            f"CONTRIBUTING.md names {name}, which is nowhere"
        )
