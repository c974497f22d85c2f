"""Audit: composition of groups, detection of simulated gaps, no flags by chance, too few patients."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, recall_score, roc_auc_score

from ral.config.base import load
from ral.config.evaluate import AuditConfig, EvaluateParams
from ral.evaluation.audit import COLUMNS, audit, groups
from ral.evaluation.bootstrap import holm
from ral.evaluation.score import Evaluation, evaluate
from ral.evaluation.specs import GROUP_METRICS, TESTED_METRICS

ROOT = Path(__file__).parent.parent.parent
CONFIG = load(ROOT / "params.yaml", EvaluateParams).evaluate.model_copy(
    update={"replicates": 300, "interval": "percentile"}
)
AUDIT = AuditConfig(by=["sex", "age", "view", "source"], age_bands=[18, 65], min_positives=10)

Tables = tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]


def make(seed: int, gap: float = 0.0, rows: int = 6000) -> Tables:
    """Three findings whose positive images are harder by `gap` in women; two images a patient."""
    generator = np.random.default_rng(seed)
    patient = np.arange(rows) // 2
    split = np.array(["train", "val", "test"])[patient % 3]
    studies = pd.DataFrame(
        {
            "image_id": [f"image{n:05d}" for n in range(rows)],
            "patient_id": [f"p{n:05d}" for n in patient],
            "split": split,
            "sex": np.array(["F", "M"])[generator.integers(2, size=rows // 2)][patient],
            "age_years": generator.choice([5.0, 40.0, 70.0, np.nan], rows // 2, p=[0.1, 0.5, 0.35, 0.05])[
                patient
            ],
            "view": generator.choice(["PA", "AP"], rows),
        }
    )
    logits = studies[["image_id"]].copy()
    own = generator.normal(size=rows // 2)[patient]
    for name, prevalence in (("Effusion", 0.3), ("Mass", 0.12), ("Hernia", 0.006)):
        label = (generator.random(rows) < prevalence).astype(float)
        ease = 1.8 - gap * (studies["sex"] == "F")
        logits[name] = 0.5 * (label * ease + 0.6 * own + 0.8 * generator.normal(size=rows) - 1)
        studies[name] = label
    return studies, logits[split == "val"], logits[split == "test"]


def evaluated(tables: Tables, **changes: object) -> Evaluation:
    config = CONFIG.model_copy(update={"audit": AUDIT.model_copy(update=changes)})
    return evaluate(*tables, config)


@pytest.fixture(scope="module")
def fair() -> tuple[Evaluation, pd.DataFrame]:
    evaluation = evaluated(make(0))
    return evaluation, audit(evaluation)


def test_groups_are_those_of_each_attribute_and_of_each_pair() -> None:
    images = make(0)[0]
    rows_of_group = {(group.attribute, group.name): group.rows for group in groups(images, AUDIT)}
    single = [name for attribute, name in rows_of_group if "×" not in attribute]
    assert single == ["F", "M", "0–17", "18–64", "65+", "unknown", "AP", "PA"]
    assert sum("×" in attribute for attribute, _ in rows_of_group) == 2 * 3 + 2 * 2 + 3 * 2
    pair = rows_of_group["sex × age", "F, 65+"]
    np.testing.assert_array_equal(pair, (images["sex"] == "F") & (images["age_years"] == 70))
    assert not any("unknown" in name for attribute, name in rows_of_group if "×" in attribute)
    one_view = groups(images.assign(view="PA"), AUDIT)
    assert not any("view" in group.attribute and "×" in group.attribute for group in one_view)
    assert groups(images, AUDIT.model_copy(update={"by": []})) == []


def test_figures_are_those_of_sklearn_on_the_groups_images(fair: tuple[Evaluation, pd.DataFrame]) -> None:
    evaluation, table = fair
    assert list(table.columns) == list(COLUMNS)
    inside = (evaluation.rows["sex"] == "F").to_numpy()
    scored = evaluation.scored["Mass"]
    labels, logits, scores = scored.labels[inside], scored.logits[inside], scored.scores[inside]
    own = table[(table["group"] == "F") & (table["finding"] == "Mass")].set_index("metric")
    sensitivity = recall_score(labels, scores >= scored.thresholds["max_f1"])
    expected = {
        "auroc": roc_auc_score(labels, logits),
        "ap": average_precision_score(labels, logits),
        "sensitivity": sensitivity,
        "false_negative_rate": 1 - sensitivity,
        "calibration": scores.mean() - labels.mean(),
    }
    assert tuple(own.index) == GROUP_METRICS
    for metric, value in expected.items():
        assert own.loc[metric, "value"] == pytest.approx(value, abs=1e-6), metric
        assert own.loc[metric, "low"] <= own.loc[metric, "value"] <= own.loc[metric, "high"]
    others = roc_auc_score(scored.labels[~inside], scored.logits[~inside])
    assert own.loc["auroc", "others"] == pytest.approx(others, abs=1e-6)
    assert own.loc["auroc", "difference"] == pytest.approx(expected["auroc"] - others, abs=2e-6)
    assert set(own["images"]) == {inside.sum()}
    assert set(own["positives"]) == {labels.sum()}


def test_all_gaps_that_are_tested_are_corrected_together(fair: tuple[Evaluation, pd.DataFrame]) -> None:
    _, table = fair
    tested = table["p"].notna()
    assert set(table.loc[tested, "metric"]) == set(TESTED_METRICS)
    assert tested.sum() > 100
    np.testing.assert_allclose(
        table.loc[tested, "p_holm"], holm(table.loc[tested, "p"].to_numpy()), atol=1e-4
    )
    assert set(table.loc[~tested, "flagged"]) == {""}


def test_few_patients_give_words_and_no_number(fair: tuple[Evaluation, pd.DataFrame]) -> None:
    _, table = fair
    few = table[table["note"].str.startswith("too few")]
    assert len(few) > 10
    assert few[["value", "low", "high", "difference", "p"]].isna().all(axis=None)
    measured = table[(table["finding"] != "macro") & table["value"].notna()]
    assert set(measured["finding"]) >= {"Effusion", "Mass"}
    assert (measured["positives"] >= 10).all()
    # All patients but a few are in one group: it has figures and nothing to be compared with.
    tables = make(1)
    tables[0]["sex"] = np.where(np.arange(6000) < 30, "F", "M")
    men = audit(evaluated(tables, by=["sex"]))
    men = men[(men["group"] == "M") & (men["finding"] == "Effusion")]
    assert men["value"].notna().all()
    assert men["p"].isna().all()
    assert men["note"].str.contains("nothing to compare with").all()


def test_an_attribute_that_the_data_lacks_is_said(fair: tuple[Evaluation, pd.DataFrame]) -> None:
    _, table = fair
    missing = table[table["attribute"] == "source"]
    assert list(missing["note"]) == ["not in the data"]


def test_a_planted_gap_is_flagged_where_it_is() -> None:
    table = audit(evaluated(make(2, gap=1.2)))
    flagged = table[table["flagged"] == "yes"]
    women = flagged[(flagged["attribute"] == "sex") & (flagged["group"] == "F")]
    assert {("Effusion", "auroc"), ("Effusion", "sensitivity"), ("macro", "auroc")} <= set(
        zip(women["finding"], women["metric"], strict=True)
    )
    assert (women.loc[women["metric"] == "auroc", "difference_high"] < 0).all()
    assert not (flagged["attribute"] == "view").any()


def test_chance_is_seldom_flagged() -> None:
    flagged = [
        (audit(evaluated(make(seed, rows=2400), by=["sex", "age"]))["flagged"] == "yes").any()
        for seed in range(10)
    ]
    assert sum(flagged) <= 1


def test_no_audit_is_an_empty_table() -> None:
    table = audit(evaluated(make(0, rows=1200), by=[]))
    assert list(table.columns) == list(COLUMNS)
    assert len(table) == 0


@pytest.mark.long
def test_the_chance_of_any_false_flag_is_about_that_agreed() -> None:
    """150 data sets without any gap, 5 % agreed: at most 15 flagged (a chance of 1 in 200 more)."""
    flagged = [(audit(evaluated(make(1000 + seed)))["flagged"] == "yes").any() for seed in range(150)]
    assert sum(flagged) <= 15
