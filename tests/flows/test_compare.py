"""The grid of the flow compare: checked before anything runs, and read from the command line."""

from pathlib import Path

import pandas as pd
import pytest
from conftest import copy_project

from flows.compare import experiments, parse_grid, summary
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
        ({"los.name": ["ral"]}, "no parameter"),
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
