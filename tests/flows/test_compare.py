"""The grid of the flow compare: checked before anything runs, and read from the command line."""

from pathlib import Path

import pandas as pd
import pytest
from conftest import copy_project
from dvc.utils.hydra import to_hydra_overrides

from flows.compare import experiments, summary
from flows.overrides import parse_changes, parse_grid, parse_word, to_setting
from flows.workspace import Workspace, open_workspace
from ral.errors import UserError


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    (tmp_path / "state").mkdir()
    return open_workspace(tmp_path / "state", "compare", str(copy_project(tmp_path / "source")), "HEAD", {})


def test_a_grid_is_every_combination(workspace: Workspace) -> None:
    before = (workspace.folder / "params.yaml").read_bytes()
    plan = experiments(workspace, {"loss.name": ["ral", "bce"], "train.seed": [0, 1]}, {})
    assert list(plan.values()) == [
        {"loss.name": name, "train.seed": seed} for name in ("ral", "bce") for seed in (0, 1)
    ]
    assert all(
        name.startswith(f"{values['loss.name']}-{values['train.seed']}-") for name, values in plan.items()
    )
    assert (workspace.folder / "params.yaml").read_bytes() == before
    # The names say what an experiment is made from, so that other parameters are other experiments.
    again = experiments(workspace, {"loss.name": ["ral", "bce"], "train.seed": [0, 1]}, {})
    assert list(again) == list(plan)
    assert not set(experiments(workspace, {"loss.name": ["ral", "bce"]}, {"train.epochs": 3})) & set(plan)


@pytest.mark.parametrize(
    ("grid", "says"),
    [
        ({}, "no values"),
        ({"loss.name": []}, "loss.name has no values"),
        ({"loss.name": ["ral", "nonsense"]}, "loss.name"),
        ({"los.name": ["ral"]}, "not a parameter"),
    ],
)
def test_a_wrong_grid_is_refused_before_anything_runs(workspace: Workspace, grid: dict, says: str) -> None:
    with pytest.raises(UserError, match=says):
        experiments(workspace, grid, {})


def test_words_of_the_command_line() -> None:
    assert parse_grid(["loss.name=ral,bce", "train.seed=0,1", "train.patience=null"]) == {
        "loss.name": ["ral", "bce"],
        "train.seed": [0, 1],
        "train.patience": [None],
    }
    with pytest.raises(UserError, match="write PARAMETER=VALUE"):
        parse_grid(["loss.name"])


@pytest.mark.parametrize(
    ("word", "values"),
    [
        ("data.findings=[Mass,Hernia],[Mass]", [["Mass", "Hernia"], ["Mass"]]),
        ("model.options={a:1,b:[x,y]},{}", [{"a": 1, "b": ["x", "y"]}, {}]),
        ("data.root='/data/a,b',/data/c", ["/data/a,b", "/data/c"]),
        ("data.root=a\\,b", ["a,b"]),
        ("train.learning_rate=1e-4,3e-4", [1e-4, 3e-4]),
        ("train.seed=range(0,3)", [0, 1, 2]),
        ("train.seed=choice(1,2)", [1, 2]),
        ("train.patience=null,2", [None, 2]),
        ("train.compile=true,False", [True, False]),
        ("loss.name=ral", ["ral"]),
        ('data.root="1"', ["1"]),
    ],
)
def test_values_are_read_as_dvc_reads_them(word: str, values: list) -> None:
    assert parse_word(word) == (word.partition("=")[0], values)


@pytest.mark.parametrize("word", ["a", "~a", "+a=1", "a=[1", "a=interval(0,1)", "a=glob(*)", "=1", "a='x"])
def test_a_word_that_dvc_cannot_sweep_is_refused(word: str) -> None:
    with pytest.raises(UserError, match="write PARAMETER=VALUE"):
        parse_word(word)


def test_a_parameter_that_stands_twice_or_has_two_values_for_all_is_refused() -> None:
    with pytest.raises(UserError, match="stands twice"):
        parse_grid(["loss.name=ral", "loss.name=bce"])
    with pytest.raises(UserError, match="one value for all"):
        parse_changes(["train.epochs=1,2"])
    assert parse_changes(["data.findings=[A,B]"]) == {"data.findings": ["A", "B"]}


@pytest.mark.parametrize(
    "value",
    [1, 1.5, 1e-7, None, True, "a", "a,b", "it's", 'q"x', "a\\b", 'a\\"b', "x\\", "null", "1", "é ü", "", " x ", [1, "x", [None]],
     {"b": 1, "c": {"d": ["e,f"]}}, {"Round(ed) Mass, x:y=[z]": "\\"}, [], {}],
)  # fmt: skip
def test_what_is_given_to_dvc_is_what_it_reads(value) -> None:
    (read,) = to_hydra_overrides([to_setting("a.b", value)])
    assert (read.key_or_group, read.value()) == ("a.b", value)


def test_a_value_that_dvc_has_no_way_to_write_is_refused() -> None:
    with pytest.raises(UserError, match="cannot be given to"):
        to_setting("a", {"ü": 1})


def test_seeds_are_summed_up_per_combination() -> None:
    row = {
        "metric": "ap",
        "level": "macro",
        "note": "",
        "data": "phantom",
        "baseline_value": 0.5,
        "low": 0.0,
        "high": 1.0,
    }
    table = pd.DataFrame(
        [
            row | {"seed": seed, "model": f"{loss}-{seed}", "baseline": f"ral-{seed}", "difference": d, "value": 0.5 + d}
            for seed, loss, d in ((0, "bce", 0.1), (0, "asl", 0.2), (1, "bce", 0.3), (1, "asl", 0.2))
        ]
    )  # fmt: skip
    text = summary(table, "val")
    assert text.startswith("PHANTOM")
    assert "Over 2 seeds (bce-0, bce-1): mean difference of macro AP +0.200, standard deviation 0.141" in text
    assert "Over 2 seeds (asl-0, asl-1): mean difference of macro AP +0.200, standard deviation 0.000" in text
