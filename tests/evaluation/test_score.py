"""The whole evaluation: metrics, findings that are not estimable, invalid input."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import (
    average_precision_score,
    brier_score_loss,
    f1_score,
    log_loss,
    precision_score,
    recall_score,
    roc_auc_score,
)

from ral.config.base import load
from ral.config.evaluate import EvaluateParams
from ral.errors import UserError
from ral.evaluation.bootstrap import BootstrapDistribution, draw
from ral.evaluation.metrics import rank, ranked
from ral.evaluation.rows import align
from ral.evaluation.score import Evaluation, evaluate
from ral.evaluation.specs import FINDING_METRICS, MICRO_METRICS
from ral.evaluation.tables import to_metrics

ROOT = Path(__file__).parent.parent.parent
CONFIG = load(ROOT / "params.yaml", EvaluateParams).evaluate.model_copy(
    update={"replicates": 200, "min_positives": 5, "seed": 7}
)
FINDINGS = ["Effusion", "Mass", "Hernia", "Edema"]  # see the fixture `tables`; Edema never occurs in test

Tables = tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]


def scored(tables: Tables, **changes: object) -> Evaluation:
    return evaluate(*tables, CONFIG.model_copy(update=changes))


def test_values_are_those_of_sklearn_on_the_known_rows(tables: Tables) -> None:
    studies, _, test_logits = tables
    evaluation = scored(tables)
    for finding in evaluation.findings[:3]:
        name = finding.name
        test = studies[studies["split"] == "test"].merge(test_logits, on="image_id", suffixes=("", "_logit"))
        test = test[test[name].notna()]
        labels, logits = test[name], test[f"{name}_logit"].astype(np.float64)
        assert finding.test_rows == len(test)
        assert finding.test_positives == labels.sum()
        assert finding.map is not None
        calibrated = finding.map.apply(logits.to_numpy())
        expected = {
            "auroc": roc_auc_score(labels, logits),
            "ap": average_precision_score(labels, logits),
            "f1": f1_score(labels, calibrated >= finding.thresholds["max_f1"]),
            "sensitivity": recall_score(labels, calibrated >= finding.thresholds["max_f1"]),
            "ppv": precision_score(labels, calibrated >= finding.thresholds["max_f1"], zero_division=np.nan),
            "brier": brier_score_loss(labels, calibrated),
            "log_loss": log_loss(labels, calibrated),
        }
        for metric, value in expected.items():
            assert finding.scores[metric].value == pytest.approx(value, abs=1e-12), metric
        raw = 1 / (1 + np.exp(-logits))
        assert finding.uncalibrated["brier"].value == pytest.approx(brier_score_loss(labels, raw), abs=1e-12)


def test_micro_is_that_of_sklearn_over_all_pairs(tables: Tables) -> None:
    studies, _, test_logits = tables
    evaluation = scored(tables)
    assert set(evaluation.micro) == set(MICRO_METRICS)
    test = studies[studies["split"] == "test"].merge(test_logits, on="image_id", suffixes=("", "_logit"))
    labels, logits = (
        np.concatenate([test[f"{name}{end}"].to_numpy(float) for name in FINDINGS[:3]])
        for end in ("", "_logit")
    )
    known = ~np.isnan(labels)
    assert evaluation.micro["auroc"].value == pytest.approx(roc_auc_score(labels[known], logits[known]))
    assert evaluation.micro["ap"].value == pytest.approx(
        average_precision_score(labels[known], logits[known])
    )
    calls = [
        evaluation.scored[name].scores >= evaluation.scored[name].thresholds["max_f1"]
        for name in FINDINGS[:3]
    ]
    expected = f1_score(labels[known], np.concatenate(calls)[known])
    assert evaluation.micro["f1"].value == pytest.approx(expected, abs=1e-12)
    assert evaluation.micro["f1"].findings == 3


def test_the_figures_of_cxr_lt_are_means_with_f1_at_one_half(tables: Tables) -> None:
    evaluation = scored(tables)
    official = evaluation.cxr_lt
    assert official["mAP"] == evaluation.macro["ap"]
    assert official["mAUROC"] == evaluation.macro["auroc"]
    assert official["mECE"] == evaluation.macro["ece"]
    by_finding = []
    for name in FINDINGS[:3]:
        one = evaluation.scored[name]
        known = one.known()
        by_finding.append(f1_score(one.labels[known], one.scores[known] >= 0.5))
    assert official["mF1"].value == pytest.approx(np.mean(by_finding), abs=1e-12)
    assert official["mF1"].findings == 3


def test_tier_and_prevalence_come_from_the_known_training_images(tables: Tables) -> None:
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
    assert set(edema.scores) == set(FINDING_METRICS)
    assert {estimate.value for estimate in edema.scores.values()} == {None}
    assert evaluation.estimable == FINDINGS[:3]
    for metric in FINDING_METRICS:
        values = [finding.scores[metric].value for finding in evaluation.findings[:3]]
        expected = None if None in values else pytest.approx(np.mean(values), abs=1e-12)
        assert evaluation.macro[metric].value == expected, metric
    content = to_metrics(evaluation).to_json()
    assert content["not_estimable"] == {"Edema": "0 patients with positive test images, at least 5 needed"}
    assert content["macro"]["findings"] == 3
    assert content["tiers"]["medium"]["findings"] == 1
    assert content["tiers"]["medium"]["ap"]["value"] == round(
        evaluation.findings[1].scores["ap"].value or 0, 6
    )


def test_too_few_negatives_are_not_estimable_either_and_patients_count(tables: Tables) -> None:
    studies = tables[0]
    test = studies.index[studies["split"] == "test"]
    studies.loc[test, "Effusion"] = 1.0
    studies.loc[test[:12], "Effusion"] = 0.0  # 12 images of 4 patients
    reason = to_metrics(scored(tables)).not_estimable["Effusion"]
    assert reason == "4 patients with negative test images, at least 5 needed"
    evaluation = scored(tables, min_positives=4)
    assert "Effusion" not in to_metrics(evaluation).not_estimable
    # A value, and no interval: fewer than five patients carry it.
    auroc = evaluation.findings[0].scores["auroc"]
    assert (auroc.low, auroc.high) == (None, None)
    assert auroc.value is not None


def test_without_a_validation_positive_only_f1_is_missing(tables: Tables) -> None:
    studies = tables[0]
    studies.loc[studies["split"] == "val", "Hernia"] = 0.0
    evaluation = scored(tables)
    hernia = evaluation.findings[2]
    assert hernia.threshold is None
    assert hernia.map is None
    assert hernia.scores["f1"].value is hernia.scores["brier"].value is None
    assert hernia.scores["ap"].value is not None
    assert "no positive validation image" in (hernia.not_estimable or "")
    assert (evaluation.macro["ap"].findings, evaluation.macro["f1"].findings) == (3, 2)
    assert evaluation.tiers["tail"]["f1"].value is None


def test_nothing_estimable_is_null_not_zero(tables: Tables) -> None:
    content = to_metrics(scored(tables, min_positives=10_000)).to_json()
    nothing = {"value": None, "low": None, "high": None, "findings": 0}
    assert content["macro"] == dict.fromkeys(FINDING_METRICS, nothing) | {"findings": 0}
    assert content["micro"] == dict.fromkeys(MICRO_METRICS, nothing) | {"findings": 0}
    assert content["tiers"]["tail"] == content["macro"]
    assert set(map(str, content["cxr_lt"].values())) == {str(nothing)}
    assert list(content["not_estimable"]) == FINDINGS


def test_a_tier_without_classes_is_null(tables: Tables) -> None:
    tail = to_metrics(scored(tables, tail=0.001)).tiers["tail"]
    assert tail.findings == 0
    assert tail["ap"].value is None


def test_intervals_contain_the_value_and_follow_the_seed(tables: Tables) -> None:
    first = scored(tables)
    assert to_metrics(first) == to_metrics(scored(tables))
    other = scored(tables, seed=8)
    all_scores = (first.macro, first.micro, *first.tiers.values(), *(f.scores for f in first.findings[:3]))
    estimates = [pair for scores in all_scores for pair in scores.items() if pair[1].value is not None]
    assert len(estimates) > 60
    for metric, estimate in estimates:
        if metric == "ece_debiased":
            assert estimate.low is estimate.high is None
            continue
        assert estimate.low <= estimate.value <= estimate.high, metric
        assert estimate.low < estimate.high, metric
    assert other.macro["ap"].value == first.macro["ap"].value
    assert other.macro["ap"].low != first.macro["ap"].low


def test_bca_and_percentile_differ_in_their_ends_only(tables: Tables) -> None:
    bca, percentile = (scored(tables, interval=interval).macro["ap"] for interval in ("bca", "percentile"))
    assert bca.value == percentile.value
    assert bca.low != percentile.low


def test_the_macro_interval_comes_from_the_replicates_of_the_findings(tables: Tables) -> None:
    studies = tables[0]
    studies.loc[studies["split"] == "test", "Hernia"] = 0.0
    # All positives of one patient: a third of the replicates lacks them and is a mean over the others.
    studies.loc[studies["patient_id"] == "p400", "Hernia"] = 1.0
    rows, scores = align(studies, tables[2], "test")
    patients = rows["patient_id"].to_numpy(dtype=str)
    resamples = draw(patients, CONFIG.replicates, CONFIG.seed, CONFIG.confidence, "percentile")
    aps = [
        BootstrapDistribution(
            ranked(
                rank(scores[name].to_numpy(), rows[name].to_numpy(), resamples.patient, resamples.patients),
                resamples.weights,
            )["ap"],
            resamples.support(rows[name].to_numpy()),
        )
        for name in FINDINGS[:3]
    ]
    assert 0.2 < np.isnan(aps[2].values).mean() < 0.5
    expected = resamples.interval(resamples.mean(aps))
    evaluation = scored(tables, min_positives=1, interval="percentile")
    macro, hernia = evaluation.macro["ap"], evaluation.findings[2].scores["ap"]
    assert (macro.low, macro.high) == (expected.low, expected.high)
    assert hernia.value is not None
    assert hernia.low is hernia.high is None  # one patient says nothing of others


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
    for metric in ("auroc", "ap", "f1", "sensitivity_at_90_specificity"):
        assert (perfect[metric].value, perfect[metric].high) == (1, 1), metric
        assert 0.5 < perfect[metric].low < 1  # nothing varies, but that is no certainty
    for logits in (val_logits, test_logits):
        logits[FINDINGS] = generator.normal(size=(len(logits), 4)).astype(np.float32)
    chance = scored(tables).macro["auroc"]
    assert chance.low is not None
    assert chance.high is not None
    assert chance.low < 0.5 < chance.high


def test_one_phantom_image_marks_the_whole_evaluation(tables: Tables) -> None:
    assert scored(tables).data == "images"
    for table in tables[:2]:
        table["image_id"] = table["image_id"].replace("image0700", "phantom0700")
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
    "nan": (change(2, put(4, "Mass", np.nan)), ["test logits", "Mass", "NaN", "image"]),
    "inf": (change(1, put(4, "Hernia", np.inf)), ["val logits", "Hernia", "infinite", "image"]),
    "column missing": (change(2, lambda t: t.drop(columns="Mass")), ["test logits", "missing: Mass"]),
    "column too many": (change(2, lambda t: t.assign(Pox=0.0)), ["test logits", "Pox"]),
    "other order": (change(1, lambda t: t[["image_id", *FINDINGS[::-1]]]), ["val logits", "different order"]),
    "image twice": (change(0, put(5, "image_id", "image0004")), ["studies", "image0004", "duplicate"]),
    "logits twice": (change(2, lambda t: pd.concat([t, t[:1]])), ["test logits", "duplicate"]),
    "image without logits": (
        change(2, lambda t: t[t["image_id"] != "image1300"]),
        ["test logits", "image1300", "without logits"],
    ),
    "logits of another split": (
        change(0, put(1300, "split", "train")),
        ["test logits", "image1300", "not in the split test"],
    ),
    "label": (change(0, put(3, "Mass", -1.0)), ["studies", "Mass", "image0003"]),
    "no patient": (change(0, put(3, "patient_id", None)), ["studies", "patient_id", "image0003"]),
    "no column patient_id": (change(0, lambda t: t.drop(columns="patient_id")), ["studies", "patient_id"]),
    "one patient": (change(0, lambda t: t.assign(patient_id="p1")), ["scored images", "1 patient"]),
    "never labelled in training": (
        change(0, lambda t: t.assign(Mass=t["Mass"].where(t["split"] != "train"))),
        ["studies", "Mass", "no training image"],
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_by_name(case: str, tables: Tables) -> None:
    break_it, words = BAD[case]
    with pytest.raises(UserError) as error:
        scored(break_it(tables))
    for word in words:
        assert word in str(error.value)
