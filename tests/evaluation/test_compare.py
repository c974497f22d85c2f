"""Paired comparison: identical models, better models, invalid input."""

import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from forks import forks
from sklearn.metrics import average_precision_score, roc_auc_score

from ral.config.base import load
from ral.config.evaluate import EvaluateParams
from ral.errors import UserError
from ral.evaluation.bootstrap import holm
from ral.evaluation.compare import COLUMNS, compare, read_logits
from ral.evaluation.score import evaluate

ROOT = Path(__file__).parent.parent.parent
CONFIG = load(ROOT / "params.yaml", EvaluateParams).evaluate.model_copy(update={"replicates": 300})
FINDINGS = ["Effusion", "Mass", "Hernia", "Edema"]

Tables = tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]


def noisier(logits: pd.DataFrame, spread: float, seed: int = 1) -> pd.DataFrame:
    noise = np.random.default_rng(seed).normal(0, spread, size=(len(logits), len(FINDINGS)))
    return logits.assign(**{name: logits[name] + noise[:, column] for column, name in enumerate(FINDINGS)})


def test_values_are_those_of_sklearn_and_differences_theirs(tables: Tables) -> None:
    studies, _, logits = tables
    worse = noisier(logits, 2.0)
    table = compare(studies, {"good": logits, "bad": worse}, "test", CONFIG)
    assert list(table.columns) == list(COLUMNS)
    row = table[(table["metric"] == "ap") & (table["name"] == "Effusion")].iloc[0]
    test = studies[studies["split"] == "test"].set_index("image_id")["Effusion"]
    good, bad = (
        average_precision_score(test, one.set_index("image_id").loc[test.index, "Effusion"])
        for one in (logits, worse)
    )
    assert row["baseline_value"] == pytest.approx(good, abs=1e-6)
    assert row["value"] == pytest.approx(bad, abs=1e-6)
    assert row["difference"] == pytest.approx(bad - good, abs=2e-6)
    assert row["low"] < row["difference"] < row["high"] < 0
    assert row["p_holm"] < 0.01
    macro = table[(table["metric"] == "auroc") & (table["level"] == "macro")].iloc[0]
    both = [
        roc_auc_score(known[name], worse.set_index("image_id").loc[known.index, name])
        for name in FINDINGS[:3]
        for known in [studies[studies["split"] == "test"].set_index("image_id")[[name]].dropna()]
    ]
    assert macro["value"] == pytest.approx(np.mean(both), abs=1e-6)
    assert macro["findings"] == 3


def test_the_macro_is_that_of_the_evaluation(tables: Tables) -> None:
    studies, val, logits = tables
    table = compare(studies, {"a": noisier(logits, 1.0), "b": logits}, "test", CONFIG)
    evaluation = evaluate(studies, val, logits, CONFIG)
    for metric in ("ap", "auroc"):
        own = table[table["metric"] == metric].set_index("name")["value"]
        assert own["macro"] == pytest.approx(evaluation.macro[metric].value, abs=1e-6)
        assert own["medium"] == pytest.approx(evaluation.tiers["medium"][metric].value, abs=1e-6)


def test_a_model_does_not_differ_from_itself(tables: Tables) -> None:
    studies, _, logits = tables
    table = compare(studies, {"a": logits, "b": logits.copy(), "c": noisier(logits, 1.0)}, "test", CONFIG)
    same = table[(table["model"] == "b") & (table["note"] == "")]
    assert (same[["difference", "low", "high"]] == 0).all(axis=None)
    assert (same["p"] == 1).all()


def test_pairing_makes_the_interval_of_a_difference_narrow(tables: Tables) -> None:
    studies, val, logits = tables
    table = compare(studies, {"a": logits, "b": noisier(logits, 0.2)}, "test", CONFIG)
    row = table[(table["metric"] == "auroc") & (table["level"] == "macro")].iloc[0]
    alone = evaluate(studies, val, logits, CONFIG).macro["auroc"]
    assert row["high"] - row["low"] < 0.5 * (alone.high - alone.low)


def test_holm_goes_over_all_models_of_a_metric_and_level(tables: Tables) -> None:
    studies, _, logits = tables
    models = {"a": logits, "b": noisier(logits, 0.5), "c": noisier(logits, 0.5, seed=2)}
    table = compare(studies, models, "test", CONFIG)
    for _, family in table.groupby(["metric", "level"]):
        np.testing.assert_allclose(family["p_holm"], holm(family["p"].to_numpy()), atol=2e-5)
    assert len(table) == 2 * 2 * (1 + 3 + 4)


def test_what_is_not_estimable_has_words_and_no_number(tables: Tables) -> None:
    studies, _, logits = tables
    table = compare(studies, {"a": logits, "b": noisier(logits, 1.0)}, "test", CONFIG)
    edema = table[table["name"] == "Edema"]
    assert edema["note"].str.contains("0 patients with positive test images").all()
    assert edema[["value", "difference", "p", "p_holm"]].isna().all(axis=None)


def test_chance_is_called_a_difference_about_as_often_as_agreed(tables: Tables) -> None:
    """Two equally noisy copies of the same scores: p below 0.2 in about a fifth of the draws."""
    studies, _, logits = tables
    config = CONFIG.model_copy(update={"replicates": 200, "interval": "percentile"})
    p_values = []
    for seed in range(60):
        pair = {"a": noisier(logits, 1.0, 2 * seed), "b": noisier(logits, 1.0, 2 * seed + 1)}
        table = compare(studies, pair, "test", config)
        p_values.append(table[(table["metric"] == "auroc") & (table["name"] == "Effusion")]["p"].iloc[0])
    assert 0.08 <= np.mean(np.array(p_values) < 0.2) <= 0.35


def test_bad_models_are_named(tables: Tables) -> None:
    studies, _, logits = tables
    cases = {
        "NaN": (logits.assign(Mass=np.nan), "Mass is NaN"),
        "row missing": (logits.iloc[1:], "without logits"),
        "other order": (logits[["image_id", *FINDINGS[::-1]]], "different order"),
        "image twice": (pd.concat([logits, logits[:1]]), "duplicate"),
    }
    for bad, words in cases.values():
        with pytest.raises(UserError, match=words) as error:
            compare(studies, {"a": logits, "b": bad}, "test", CONFIG)
        assert str(error.value).startswith("b: test logits")
    with pytest.raises(UserError, match="at least two"):
        compare(studies, {"a": logits}, "test", CONFIG)


@pytest.fixture
def folder(tables: Tables, tmp_path: Path) -> Path:
    studies, val, logits = tables
    studies.to_parquet(tmp_path / "studies.parquet")
    (tmp_path / "good/logits").mkdir(parents=True)
    logits.to_parquet(tmp_path / "good/logits/test.parquet")
    val.to_parquet(tmp_path / "good/logits/val.parquet")
    noisier(logits, 2.0).to_parquet(tmp_path / "bad.parquet")
    return tmp_path


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    line = [
        *forks().command("ral.evaluation.compare"),
        *arguments,
        "--studies",
        str(folder / "studies.parquet"),
    ]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True)


def test_the_command_compares_files_and_folders(folder: Path) -> None:
    out = folder / "comparison.csv"
    done = command(folder, str(folder / "good"), str(folder / "bad.parquet"), "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert "Research software" in done.stdout
    assert "600 test images of 200 patients" in done.stdout
    assert "not estimable: 0 patients with positive test images" in done.stdout
    assert "Holm" in done.stdout
    assert list(pd.read_csv(out).columns) == list(COLUMNS)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["good", "nothing"], "nothing: no logits found"),
        (["good"], "at least two"),
        (["good", "good"], "given twice"),
        (["good", "bad.parquet", "--split", "val"], "of the split val without logits"),
        (["good", "studies.parquet"], "the columns do not match"),
    ],
)
def test_the_command_says_what_is_wrong(folder: Path, arguments: list[str], words: str) -> None:
    paths = [str(folder / one) if not one.startswith("-") and one != "val" else one for one in arguments]
    done = command(folder, *paths)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert words in done.stderr


@pytest.mark.parametrize("name", ["=1+1", " @SUM(A1)", "\uff1dA1", "Mass\tNodule", "Mass\x1b[2J", "-Mass"])
def test_logits_of_a_finding_that_is_a_formula_are_refused(folder: Path, name: str) -> None:
    """The studies agree with them, and yet no CSV file gets such a name."""
    bad = folder / "formula.parquet"
    for path in (folder / "studies.parquet", folder / "good/logits/test.parquet"):
        table = pd.read_parquet(path).rename(columns={"Mass": name})
        table.to_parquet(bad if path.name == "test.parquet" else path)
    with pytest.raises(UserError, match="would be a formula or several cells") as error:
        read_logits(bad, "test")
    assert f"formula.parquet: the column {name!a} " in str(error.value)
    assert str(error.value).isprintable()


def test_the_command_refuses_a_formula(folder: Path) -> None:
    pd.read_parquet(folder / "bad.parquet").rename(columns={"Mass": "=1+1"}).to_parquet(
        folder / "bad.parquet"
    )
    out = folder / "comparison.csv"
    done = command(folder, str(folder / "good"), str(folder / "bad.parquet"), "--out", str(out))
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {folder}/bad.parquet: the column '=1+1' would be a formula")
    assert not out.exists()
