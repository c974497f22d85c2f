"""Recipes: files of changed parameters that the schema accepts, and refused ones."""

from pathlib import Path

import pytest
from conftest import ROOT

from flows.overrides import parse_changes
from flows.recipe import settings
from ral.config.base import read_yaml
from ral.errors import UserError

PARAMS = ROOT / "params.yaml"
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_a_recipe_of_the_project_fits_the_schema_and_says_what_it_rests_on(recipe: Path) -> None:
    assert parse_changes(settings(recipe, PARAMS))
    comment = "".join(line for line in recipe.read_text().splitlines() if line.startswith("#"))
    assert "docs/RESULTS.md" in comment
    assert f"python -m flows.recipe recipes/{recipe.name}" in comment


def test_there_is_a_recipe_and_ral_stays_the_default() -> None:
    assert RECIPES
    assert read_yaml(PARAMS)["loss"]["name"] == "ral"


def test_sections_become_settings(tmp_path: Path) -> None:
    path = tmp_path / "one.yaml"
    path.write_text(
        "loss:\n  name: asl\n  asl: {gamma_neg: 2}\ntrain:\n  ema_decay: null\n  sampler: {name: class_aware}\n"
    )
    assert parse_changes(settings(path, PARAMS)) == {
        "loss.name": "asl", "loss.asl.gamma_neg": 2, "train.ema_decay": None, "train.sampler.name": "class_aware",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("loss: {name: bcee}", "loss.name"),
        ("loss: {nmae: bce}", "loss.nmae"),
        ("loss: {custom: {class_path: 'a:B'}}", "is code"),
        ("{}", "changes nothing"),
        ("- loss", "top level"),
    ],
)
def test_a_wrong_recipe_is_refused_by_name(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=words) as caught:
        settings(path, PARAMS)
    assert "wrong.yaml" in str(caught.value)


def test_printed_changes(run) -> None:  # type: ignore[no-untyped-def]
    printed = run("python", "-m", "flows.recipe", "recipes/comp_sum.yaml", "--print", cwd=ROOT).stdout
    assert 'loss.name="comp_sum"' in printed.splitlines()
