"""The evaluation as a whole: what is scored, what is not estimable, what is refused."""

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, f1_score, precision_recall_curve, roc_auc_score

from ral.config.evaluate import EvaluateConfig
from ral.errors import UserError
from ral.evaluation.bootstrap import interval, patient_weights
from ral.evaluation.metrics import ap, auroc_and_ap, best_f1_threshold
from ral.evaluation.score import Evaluation, align, curves, evaluate, to_metrics, to_table

CONFIG = EvaluateConfig(head=0.1, tail=0.01, min_positives=5, replicates=200, confidence=0.95, seed=7)
# Head, medium, tail in training, and one that never occurs in test.
PREVALENCE = {"Effusion": 0.3, "Mass": 0.05, "Hernia": 0.005, "Edema": 0.08}
FINDINGS = list(PREVALENCE)

Tables = tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]


def logits_of(studies: pd.DataFrame, split: str) -> pd.DataFrame:
    """Logits that know a little about the labels, in an order of rows of their own."""
    rows = studies[studies["split"] == split].sample(frac=1, random_state=1)
    generator = np.random.default_rng(len(rows))
    logits = pd.DataFrame({"image_id": rows["image_id"].to_numpy()})
    for name in FINDINGS:
        noise = generator.normal(size=len(rows))
        logits[name] = (noise + 1.5 * rows[name].fillna(0).to_numpy()).astype(np.float32)
    return logits


@pytest.fixture
def tables() -> Tables:
    """Studies of 1800 films, three a patient, and logits for val and test."""
    generator = np.random.default_rng(0)
    rows = 1800
    number = np.arange(rows)
    split = np.repeat(["train", "val", "test"], rows // 3)
    studies = pd.DataFrame(
        {
            "image_id": [f"film{n:04d}" for n in number],
            "patient_id": [f"p{n // 3:03d}" for n in number],
            "split": split,
        }
    )
    for name, prevalence in PREVALENCE.items():
        label = np.zeros(rows)
        for part, scale in (("train", 1.0), ("val", 2.0), ("test", 4.0 if name == "Hernia" else 2.0)):
            inside = np.flatnonzero(split == part)
            label[generator.choice(inside, int(prevalence * scale * len(inside)), replace=False)] = 1
        studies[name] = label
    studies.loc[studies["split"] == "test", "Edema"] = 0.0
    studies.loc[number % 7 == 0, "Mass"] = np.nan
    return studies, logits_of(studies, "val"), logits_of(studies, "test")


def scored(tables: Tables, **changes: object) -> Evaluation:
    return evaluate(*tables, CONFIG.model_copy(update=changes))


def test_values_are_those_of_sklearn_on_the_known_rows(tables: Tables) -> None:
    studies, val_logits, test_logits = tables
    for finding in scored(tables).findings[:3]:
        name = finding.name
        test = studies[studies["split"] == "test"].merge(test_logits, on="image_id", suffixes=("", "_logit"))
        test = test[test[name].notna()]
        labels, scores = test[name], test[f"{name}_logit"].astype(np.float64)
        assert finding.test_rows == len(test)
        assert finding.test_positives == labels.sum()
        assert finding.scores.auroc.value == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
        assert finding.scores.ap.value == pytest.approx(average_precision_score(labels, scores), abs=1e-12)
        val = studies[studies["split"] == "val"].merge(val_logits, on="image_id", suffixes=("", "_logit"))
        assert finding.threshold == best_f1_threshold(val[f"{name}_logit"].to_numpy(), val[name].to_numpy())
        expected = f1_score(labels, scores >= finding.threshold)
        assert finding.scores.f1.value == pytest.approx(expected, abs=1e-12)


def test_tier_and_prevalence_come_from_the_known_training_films(tables: Tables) -> None:
    studies = tables[0]
    findings = {finding.name: finding for finding in scored(tables).findings}
    tiers = {name: finding.tier for name, finding in findings.items()}
    assert tiers == {"Effusion": "head", "Mass": "medium", "Hernia": "tail", "Edema": "medium"}
    train = studies.loc[studies["split"] == "train", "Mass"]
    assert findings["Mass"].train_positives == train.sum()
    assert findings["Mass"].train_prevalence == train.mean()  # pandas leaves the unknown out


def test_a_class_without_positives_is_not_estimable_and_the_macro_goes_over_the_others(
    tables: Tables,
) -> None:
    evaluation = scored(tables)
    edema = evaluation.findings[3]
    assert [estimate.value for estimate in vars(edema.scores).values()] == [None, None, None]
    assert evaluation.estimable == FINDINGS[:3]
    for metric in ("auroc", "ap", "f1"):
        values = [getattr(finding.scores, metric).value for finding in evaluation.findings[:3]]
        assert getattr(evaluation.macro, metric).value == pytest.approx(np.mean(values), abs=1e-12)
    content = to_metrics(evaluation)
    assert content["not_estimable"] == {"Edema": "0 positive test films, at least 5 needed"}
    assert content["macro"]["findings"] == 3
    assert content["tiers"]["medium"]["findings"] == 1
    assert content["tiers"]["medium"]["ap"]["value"] == round(evaluation.findings[1].scores.ap.value or 0, 6)


def test_too_few_negatives_are_not_estimable_either(tables: Tables) -> None:
    studies = tables[0]
    test = studies.index[studies["split"] == "test"]
    studies.loc[test[4:], "Effusion"] = 1.0
    studies.loc[test[:4], "Effusion"] = 0.0
    reason = to_metrics(scored(tables))["not_estimable"]["Effusion"]
    assert reason == "4 negative test films, at least 5 needed"
    assert "Effusion" not in to_metrics(scored(tables, min_positives=4))["not_estimable"]


def test_without_a_validation_positive_only_f1_is_missing(tables: Tables) -> None:
    studies = tables[0]
    studies.loc[studies["split"] == "val", "Hernia"] = 0.0
    evaluation = scored(tables)
    hernia = evaluation.findings[2]
    assert hernia.threshold is None
    assert hernia.scores.f1.value is None
    assert hernia.scores.ap.value is not None
    assert "no positive validation film" in (hernia.not_estimable or "")
    assert (evaluation.macro.ap.findings, evaluation.macro.f1.findings) == (3, 2)
    assert evaluation.tiers["tail"].f1.value is None


def test_nothing_estimable_is_null_not_zero(tables: Tables) -> None:
    content = to_metrics(scored(tables, min_positives=10_000))
    nothing = {"value": None, "low": None, "high": None}
    assert content["macro"] == {"auroc": nothing, "ap": nothing, "f1": nothing, "findings": 0}
    assert content["tiers"]["tail"] == content["macro"]
    assert list(content["not_estimable"]) == FINDINGS


def test_a_tier_without_classes_is_null(tables: Tables) -> None:
    content = to_metrics(scored(tables, tail=0.001))
    assert content["tiers"]["tail"]["findings"] == 0
    assert content["tiers"]["tail"]["ap"]["value"] is None


def test_intervals_contain_the_value_and_follow_the_seed(tables: Tables) -> None:
    first = scored(tables)
    assert to_metrics(first) == to_metrics(scored(tables))
    other = scored(tables, seed=8)
    for scores in (first.macro, *first.tiers.values(), *(f.scores for f in first.findings[:3])):
        for estimate in vars(scores).values():
            assert estimate.low < estimate.value < estimate.high
    assert other.macro.ap.value == first.macro.ap.value
    assert other.macro.ap.low != first.macro.ap.low


def test_the_macro_interval_comes_from_the_replicates_of_the_findings(tables: Tables) -> None:
    studies = tables[0]
    studies.loc[studies["split"] == "test", "Hernia"] = 0.0
    # All positives of one patient: a third of the replicates lacks them and is a mean over the others.
    studies.loc[studies["patient_id"] == "p400", "Hernia"] = 1.0
    rows, scores = align(studies, tables[2], "test")
    weights = patient_weights(rows["patient_id"].to_numpy(dtype=str), CONFIG.replicates, CONFIG.seed)
    aps = [auroc_and_ap(scores[name].to_numpy(), rows[name].to_numpy(), weights)[1] for name in FINDINGS[:3]]
    assert 0.2 < np.isnan(aps[2]).mean() < 0.5
    low, high = interval(np.nanmean(aps, axis=0), CONFIG.confidence)
    evaluation = scored(tables, min_positives=3)
    macro, hernia = evaluation.macro.ap, evaluation.findings[2].scores.ap
    assert (macro.low, macro.high) == (pytest.approx(low, abs=1e-12), pytest.approx(high, abs=1e-12))
    assert (hernia.low, hernia.high) == interval(aps[2], CONFIG.confidence)


def test_thresholds_never_see_the_test_labels(tables: Tables) -> None:
    studies = tables[0]
    before = [finding.threshold for finding in scored(tables).findings]
    test = studies["split"] == "test"
    studies.loc[test, FINDINGS] = 1 - studies.loc[test, FINDINGS]
    tables[2][FINDINGS] += 3
    after = scored(tables)
    assert [finding.threshold for finding in after.findings] == before
    val = studies["split"] == "val"
    studies.loc[val, FINDINGS] = 1 - studies.loc[val, FINDINGS]
    assert [finding.threshold for finding in scored(tables).findings] != before


def test_order_of_rows_does_not_matter(tables: Tables) -> None:
    mixed = tuple(table.sample(frac=1, random_state=3).reset_index(drop=True) for table in tables)
    assert scored(mixed) == scored(tables)  # type: ignore[arg-type]


def test_perfect_and_random_scorers(tables: Tables) -> None:
    studies, val_logits, test_logits = tables
    generator = np.random.default_rng(5)
    for logits in (val_logits, test_logits):
        labels = studies.set_index("image_id").loc[logits["image_id"], FINDINGS].fillna(0).to_numpy()
        logits[FINDINGS] = labels.astype(np.float32)
    perfect = scored(tables).macro
    for estimate in vars(perfect).values():
        assert (estimate.value, estimate.low, estimate.high) == (1, 1, 1)
    for logits in (val_logits, test_logits):
        logits[FINDINGS] = generator.normal(size=(len(logits), 4)).astype(np.float32)
    chance = scored(tables).macro.auroc
    assert chance.low is not None
    assert chance.high is not None
    assert chance.low < 0.5 < chance.high


def test_one_phantom_film_marks_the_whole_evaluation(tables: Tables) -> None:
    assert scored(tables).data == "films"
    for table in tables[:2]:
        table["image_id"] = table["image_id"].replace("film0700", "phantom0700")
    assert scored(tables).data == "phantom"


def change(table: int, edit: Callable[[pd.DataFrame], object]) -> Callable[[Tables], Tables]:
    """Apply `edit` to one of the three tables: in place, or to a new one that it returns."""

    def apply(tables: Tables) -> Tables:
        edited = edit(tables[table])
        changed = edited if isinstance(edited, pd.DataFrame) else tables[table]
        return (*tables[:table], changed, *tables[table + 1 :])  # type: ignore[return-value]

    return apply


def put(row: int, column: str, value: object) -> Callable[[pd.DataFrame], object]:
    def edit(table: pd.DataFrame) -> None:
        table.loc[table.index[row], column] = value

    return edit


BAD = {
    "nan": (change(2, put(4, "Mass", np.nan)), ["test logits", "Mass", "NaN", "film"]),
    "inf": (change(1, put(4, "Hernia", np.inf)), ["val logits", "Hernia", "infinite", "film"]),
    "column missing": (change(2, lambda t: t.drop(columns="Mass")), ["test logits", "missing: Mass"]),
    "column too many": (change(2, lambda t: t.assign(Pox=0.0)), ["test logits", "Pox"]),
    "other order": (change(1, lambda t: t[["image_id", *FINDINGS[::-1]]]), ["val logits", "other order"]),
    "film twice": (change(0, put(5, "image_id", "film0004")), ["studies", "film0004", "more than once"]),
    "logits twice": (change(2, lambda t: pd.concat([t, t[:1]])), ["test logits", "more than once"]),
    "film without logits": (
        change(2, lambda t: t[t["image_id"] != "film1300"]),
        ["test logits", "film1300", "without logits"],
    ),
    "logits of another split": (
        change(0, put(1300, "split", "train")),
        ["test logits", "film1300", "not in the split test"],
    ),
    "label": (change(0, put(3, "Mass", -1.0)), ["studies", "Mass", "film0003"]),
    "no patient": (change(0, put(3, "patient_id", None)), ["studies", "patient_id", "film0003"]),
    "no column patient_id": (change(0, lambda t: t.drop(columns="patient_id")), ["studies", "patient_id"]),
    "one patient": (change(0, lambda t: t.assign(patient_id="p1")), ["studies", "test", "1 patient"]),
    "never labelled in training": (
        change(0, lambda t: t.assign(Mass=t["Mass"].where(t["split"] != "train"))),
        ["studies", "Mass", "no training film"],
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_by_name(case: str, tables: Tables) -> None:
    break_it, words = BAD[case]
    with pytest.raises(UserError) as error:
        scored(break_it(tables))
    for word in words:
        assert word in str(error.value)


def test_metrics_are_plain_json_with_six_decimals(tables: Tables) -> None:
    content = to_metrics(scored(tables))
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert set(content) == {"data", "test", "macro", "tiers", "not_estimable", "confidence", "replicates"}
    assert content["test"] == {"rows": 600, "patients": 200}
    assert list(content["tiers"]) == ["head", "medium", "tail"]
    assert content["macro"]["ap"]["value"] == round(content["macro"]["ap"]["value"], 6)


def test_table_has_a_row_per_finding_by_prevalence(tables: Tables) -> None:
    evaluation = scored(tables)
    table = to_table(evaluation)
    assert list(table["finding"]) == ["Effusion", "Edema", "Mass", "Hernia"]
    assert " ".join(table.columns) == (
        "finding tier train_prevalence train_positives test_positives test_rows threshold "
        "auroc auroc_low auroc_high ap ap_low ap_high f1 f1_low f1_high not_estimable"
    )
    assert np.isnan(table.loc[1, "ap"])
    assert "0 positive" in table.loc[1, "not_estimable"]
    assert table.loc[0, "ap"] == round(evaluation.findings[0].scores.ap.value or 0, 6)
    empty = to_table(replace(evaluation, findings=evaluation.findings[3:]))
    assert empty["ap"].dtype == empty["threshold"].dtype == np.float64
    assert empty["test_rows"].dtype == np.int64


def test_curves_lie_on_those_of_sklearn(tables: Tables) -> None:
    rows, scores = align(tables[0], tables[2], "test")
    table = curves(rows, scores, FINDINGS[:3], points=2001)
    assert table.groupby(["finding", "curve"]).size().eq(2001).all()
    for name in FINDINGS[:3]:
        known = rows[name].notna()
        labels, logits = rows.loc[known, name].to_numpy(), scores.loc[known, name].to_numpy()
        own = table[table["finding"] == name]
        roc, pr = own[own["curve"] == "roc"], own[own["curve"] == "pr"]
        assert (roc.iloc[0][["x", "y"]] == 0).all()
        assert (roc.iloc[-1][["x", "y"]] == 1).all()
        assert np.trapezoid(roc["y"], roc["x"]) == pytest.approx(roc_auc_score(labels, logits), abs=1e-3)
        assert pr["y"].iloc[1:].mean() == pytest.approx(ap(logits, labels), abs=2e-3)
        precision, _, _ = precision_recall_curve(labels, logits)
        assert set(pr["y"]) <= set(np.round(precision, 6))


def test_curves_of_no_finding_are_an_empty_table(tables: Tables) -> None:
    rows, scores = align(tables[0], tables[2], "test")
    assert list(curves(rows, scores, []).columns) == ["finding", "curve", "x", "y"]
