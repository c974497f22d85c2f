"""A second reading: agreement against scikit-learn, metrics against both readings, invalid tables."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest
from sklearn.metrics import cohen_kappa_score, f1_score, roc_auc_score

from ral.config.base import load
from ral.config.evaluate import EvaluateParams, SecondReadingConfig
from ral.errors import UserError
from ral.evaluation.bootstrap import draw
from ral.evaluation.score import Evaluation, evaluate
from ral.evaluation.second_reading import COLUMNS, agreement, agreements, read, table

ROOT = Path(__file__).parent.parent.parent
CONFIG = load(ROOT / "params.yaml", EvaluateParams).evaluate.model_copy(update={"replicates": 200})

Tables = tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]


@pytest.fixture(autouse=True)
def _project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second reading lies below the folder that the step works in."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def evaluation(tables: Tables) -> Evaluation:
    return evaluate(*tables, CONFIG)


@pytest.fixture
def second(evaluation: Evaluation) -> pd.DataFrame:
    """Every other image read again, one label in ten differently; in an order of its own."""
    images = evaluation.rows[::2].sample(frac=1, random_state=1)
    turned = np.random.default_rng(2).random((len(images), 2)) < 0.1
    reading = images[["image_id"]].copy()
    for column, name in enumerate(("Effusion", "Mass")):
        reading[f"{name} again"] = (images[name] - turned[:, column]).abs()
    return reading


def config(path: Path, **columns: str) -> SecondReadingConfig:
    return SecondReadingConfig(
        file=path.name,
        image_id="image_id",
        columns=columns or {"Effusion": "Effusion again", "Mass": "Mass again"},
    )


def test_agreement_is_that_of_sklearn(evaluation: Evaluation, second: pd.DataFrame, tmp_path: Path) -> None:
    second.to_csv(tmp_path / "second.csv", index=False)
    result = agreement(evaluation, read(config(tmp_path / "second.csv"), list(evaluation.scored)))
    assert list(result.columns) == list(COLUMNS)
    for row in result.to_dict("records"):
        name = row["finding"]
        both = evaluation.rows.merge(second, on="image_id").dropna(subset=[name, f"{name} again"])
        one, two = both[name], both[f"{name} again"]
        assert row["images"] == len(both)
        assert row["kappa"] == pytest.approx(cohen_kappa_score(one, two), abs=1e-6)
        assert row["positive_agreement"] == pytest.approx(f1_score(one, two), abs=1e-6)
        assert row["negative_agreement"] == pytest.approx(f1_score(1 - one, 1 - two), abs=1e-6)
        assert row["kappa_low"] < row["kappa"] < row["kappa_high"]
        logits = pd.Series(evaluation.scored[name].logits, evaluation.rows["image_id"])[both["image_id"]]
        assert row["auroc_first"] == pytest.approx(roc_auc_score(one, logits), abs=1e-6)
        assert row["auroc_second"] == pytest.approx(roc_auc_score(two, logits), abs=1e-6)
        assert row["auroc_second"] < row["auroc_first"]
        assert row["note"] == ""


def test_a_reading_that_agrees_fully_says_so(evaluation: Evaluation) -> None:
    same = evaluation.rows[["image_id", "Effusion", "Edema"]]
    row = agreement(evaluation, same).set_index("finding")
    assert row.loc["Effusion", "kappa"] == row.loc["Effusion", "positive_agreement"] == 1
    # Nobody saw any: there is nothing to agree on beyond chance, and nothing to rank.
    assert np.isnan(row.loc["Edema", "kappa"])
    assert np.isnan(row.loc["Edema", "auroc_second"])
    assert "second reading: 0 patients with positive" in row.loc["Edema", "note"]


def test_readings_that_agree_on_no_positive_or_on_all_have_the_exact_end() -> None:
    """100 patients of one image; the readings see 4 positives each."""
    resamples = draw(np.array([f"p{number:03d}" for number in range(100)]), 400, seed=1, method="bca")
    one, two = np.zeros(100), np.zeros(100)
    one[:4] = two[4:8] = 1
    result = {name: resamples.interval(value) for name, value in agreements(one, two, resamples).items()}
    upper = binomtest(0, 8).proportion_ci().high
    agreed, apart = 8 * upper, 4 * (1 - upper)
    table = np.array([[92, apart], [apart, agreed]])
    # Kappa of the counts in which as many are agreed on as the exact interval allows.
    chance = (table.sum(axis=0) * table.sum(axis=1)).sum() / 100**2
    kappa = (np.trace(table) / 100 - chance) / (1 - chance)
    assert result["kappa"].value == pytest.approx(-0.0417, abs=1e-4)
    assert result["kappa"].high == pytest.approx(kappa, abs=0.002)  # and what replicates vary
    assert -0.2 < result["kappa"].low < result["kappa"].value
    assert result["positive_agreement"].value == 0
    assert result["positive_agreement"].high == pytest.approx(2 * upper / (1 + upper))
    same = {name: resamples.interval(value) for name, value in agreements(one, one, resamples).items()}
    assert same["kappa"].low is None  # four patients carry it
    one[4] = 1
    same = {name: resamples.interval(value) for name, value in agreements(one, one, resamples).items()}
    assert (same["kappa"].value, same["kappa"].high) == (1, 1)
    low = binomtest(5, 5).proportion_ci().low
    assert same["positive_agreement"].low == pytest.approx(2 * low / (1 + low))
    assert same["kappa"].low == pytest.approx(2 * low / (1 + low), abs=0.03)


def test_without_a_second_reading_the_table_is_empty(evaluation: Evaluation) -> None:
    empty = table(evaluation)
    assert list(empty.columns) == list(COLUMNS)
    assert len(empty) == 0


def test_bad_tables_are_refused_by_name(evaluation: Evaluation, second: pd.DataFrame, tmp_path: Path) -> None:
    findings, path = list(evaluation.scored), tmp_path / "second.csv"
    with pytest.raises(UserError, match="does not exist"):
        read(config(path), findings)
    cases = {
        "lacks the column `Mass again`": second.drop(columns="Mass again"),
        "duplicate": pd.concat([second, second[:1]]),
        "not 1, 0 or empty for 1 image.*in row 2": second.assign(
            **{"Mass again": [2.0, *second["Mass again"][1:]]}
        ),
    }
    for words, bad in cases.items():
        bad.to_csv(path, index=False)
        with pytest.raises(UserError, match=words):
            read(config(path), findings)
    with pytest.raises(ValueError, match=r"must be relative and must not contain `\.\.`"):
        SecondReadingConfig(file="../second.csv", image_id="image_id", columns={"Mass": "Mass"})
    path.write_text("secret first line\nsecret second line\n")
    with pytest.raises(UserError, match="none of the columns needed") as caught:
        read(config(path), findings)
    assert "secret" not in str(caught.value)
    second.to_parquet(tmp_path / "second.parquet")
    second.to_csv(path, index=False)
    pd.testing.assert_frame_equal(
        read(config(path), findings), read(config(tmp_path / "second.parquet"), findings), check_dtype=False
    )
    with pytest.raises(UserError, match="no finding Masses"):
        read(config(path, Masses="Mass again"), findings)
    strangers = second.assign(image_id="x" + second["image_id"]).rename(columns={"Mass again": "Mass"})
    with pytest.raises(UserError, match="contains no test image"):
        agreement(evaluation, strangers[["image_id", "Mass"]])
