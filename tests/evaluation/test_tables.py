"""Outputs of an evaluation: JSON-compatible, rounded, complete."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, confusion_matrix, precision_recall_curve, roc_auc_score

from ral.config.base import load
from ral.config.evaluate import RULES, EvaluateParams
from ral.evaluation import calibration_io
from ral.evaluation import tables as written
from ral.evaluation.audit import audit
from ral.evaluation.results import NOTHING
from ral.evaluation.score import Evaluation, evaluate

ROOT = Path(__file__).parent.parent.parent
CONFIG = load(ROOT / "params.yaml", EvaluateParams).evaluate.model_copy(update={"replicates": 200})
FINDINGS = ["Effusion", "Mass", "Hernia"]

Tables = tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]


@pytest.fixture
def evaluation(tables: Tables) -> Evaluation:
    return evaluate(*tables, CONFIG)


def test_metrics_are_plain_json_with_six_decimals(evaluation: Evaluation) -> None:
    content = written.to_metrics(evaluation).to_json()
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert set(content) == {
        "data", "test", "macro", "micro", "tiers", "cxr_lt", "not_estimable", "confidence", "interval", "replicates",
    }  # fmt: skip
    assert content["test"] == {"rows": 600, "patients": 200}
    assert list(content["tiers"]) == ["head", "medium", "tail"]
    assert content["macro"]["ap"]["value"] == round(content["macro"]["ap"]["value"], 6)
    assert content["macro"]["findings"] == content["macro"]["ap"]["findings"] == 3
    assert list(content["cxr_lt"]) == ["mAP", "mAUROC", "mF1", "mECE"]


def test_the_summary_holds_the_few_metrics_of_metrics_json(evaluation: Evaluation) -> None:
    content, metrics = written.to_summary(evaluation), written.to_metrics(evaluation).to_json()
    macro = {name: metrics["macro"][name]["value"] for name in ("ap", "auroc", "ece")}
    tiers = {f"ap_{name}": mean["ap"]["value"] for name, mean in metrics["tiers"].items()}
    assert content == {"test": {"data": metrics["data"], **macro, **tiers}}
    assert list(tiers) == ["ap_head", "ap_medium", "ap_tail"]
    assert None not in macro.values()
    nothing = replace(evaluation, macro=dict.fromkeys(evaluation.macro, NOTHING))
    assert written.to_summary(nothing)["test"]["ap"] is None


def test_table_has_a_row_per_finding_by_prevalence(evaluation: Evaluation) -> None:
    table = written.to_table(evaluation)
    assert list(table["finding"]) == ["Effusion", "Edema", "Mass", "Hernia"]
    assert " ".join(table.columns).startswith(
        "finding tier train_prevalence train_positives test_positives test_rows threshold auroc auroc_low auroc_high"
    )
    assert {"f1_low", "brier", "brier_uncalibrated", "ece_debiased_high", "calibration"} <= set(table.columns)
    assert table.columns[-1] == "not_estimable"
    assert np.isnan(table.loc[1, "ap"])
    assert "0 patients with positive" in table.loc[1, "not_estimable"]
    assert table.loc[0, "ap"] == round(evaluation.findings[0].scores["ap"].value or 0, 6)
    empty = written.to_table(replace(evaluation, findings=evaluation.findings[3:]))
    assert empty["ap"].dtype == empty["threshold"].dtype == np.float64
    assert empty["test_rows"].dtype == np.int64


def test_operating_points_are_counts_of_calls(evaluation: Evaluation) -> None:
    table = written.operating(evaluation)
    assert len(table) == 12  # three estimable findings, four rules
    assert list(table.loc[table["chosen"], "rule"]) == ["max_f1"] * 3
    for row in table.to_dict("records"):
        scored = evaluation.scored[row["finding"]]
        known = scored.known()
        called = scored.scores[known] >= scored.thresholds[row["rule"]]
        tn, fp, fn, tp = confusion_matrix(scored.labels[known], called, labels=[0, 1]).ravel()
        assert [row[name] for name in ("tp", "fp", "fn", "tn")] == [tp, fp, fn, tn]
        assert row["sensitivity"] == pytest.approx(tp / (tp + fn), abs=1e-6)
        assert row["sensitivity_low"] <= row["sensitivity"] <= row["sensitivity_high"]
    assert list(written.operating(replace(evaluation, findings=())).columns) == list(table.columns)


def test_no_zero_is_negative() -> None:
    table = written.rounded(
        pd.DataFrame({"low": [-1e-9, -0.5, np.nan], "name": ["a", "b", "c"]}), text=("name",)
    )
    assert table.to_csv(index=False) == "low,name\n0.0,a\n-0.5,b\n,c\n"


def coarse(logits: pd.DataFrame) -> pd.DataFrame:
    """Logits as a network in bfloat16 gives them: eight bits, so that many images share one."""
    bits = logits[[*FINDINGS, "Edema"]].to_numpy(np.float32).view(np.uint32)
    kept = ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)
    return logits.assign(**dict(zip([*FINDINGS, "Edema"], kept.T, strict=True)))


@pytest.mark.parametrize("shrink", [1.0, 0.01, 40.0])
@pytest.mark.parametrize("isotonic", [50, 100_000])
def test_written_thresholds_give_the_written_counts(
    tables: Tables, shrink: float, isotonic: int, tmp_path: Path
) -> None:
    studies, *logits = tables
    scaled = [part.assign(**{name: part[name] * shrink for name in [*FINDINGS, "Edema"]}) for part in logits]
    calibration = CONFIG.calibration.model_copy(update={"own": 10, "isotonic": isotonic})
    config = CONFIG.model_copy(update={"calibration": calibration})
    evaluation = evaluate(studies, coarse(scaled[0]), coarse(scaled[1]), config)
    for name, part in (
        ("operating", written.operating(evaluation)),
        ("findings", written.to_table(evaluation)),
    ):
        part.to_csv(tmp_path / f"{name}.csv", index=False)
    points = pd.read_csv(tmp_path / "operating.csv")
    assert len(points) == 12
    for row in points.to_dict("records"):
        scored = evaluation.scored[row["finding"]]
        called = scored.scores >= row["threshold"]
        assert (called & (scored.labels == 1)).sum() == row["tp"]
        assert (called & (scored.labels == 0)).sum() == row["fp"]
    raw = pd.read_csv(tmp_path / "findings.csv").set_index("finding")
    for name in FINDINGS:
        scored = evaluation.scored[name]
        called = scored.logits >= raw.loc[name, "threshold"]
        point = points[(points["finding"] == name) & (points["rule"] == "max_f1")].iloc[0]
        assert (called & (scored.labels == 1)).sum() == point["tp"]
        assert (called & (scored.labels == 0)).sum() == point["fp"]
    # Nor does the file of the maps lose or gain an image.
    content = json.loads(json.dumps(written.to_calibration(evaluation).to_json()))
    for rule in RULES:
        calls = calibration_io.apply(
            content,
            coarse(scaled[1]).set_index("image_id").loc[evaluation.rows["image_id"]].reset_index(),
            rule,
        )[1]
        for name in FINDINGS:
            scored = evaluation.scored[name]
            np.testing.assert_array_equal(calls[name], scored.scores >= scored.thresholds[rule])


def test_reliability_counts_every_known_image_once(evaluation: Evaluation) -> None:
    table = written.reliability(evaluation)
    images = table.groupby(["finding", "scores"])["images"].sum().unstack()
    for name in FINDINGS:
        assert set(images.loc[name]) == {evaluation.scored[name].known().sum()}
    assert table["mean_score"].between(0, 1).all()
    bounded = table.dropna(subset="low")
    assert len(bounded) > 20
    assert (bounded["low"] <= bounded["observed"]).all()
    assert (bounded["observed"] <= bounded["high"]).all()


def test_decision_curves_are_of_the_estimable_and_calibrated_findings(evaluation: Evaluation) -> None:
    table = written.decision_curves(evaluation)
    assert list(table.columns) == ["finding", "threshold", "net_benefit", "low", "high", "all", "images"]
    assert list(table["finding"].unique()) == FINDINGS
    known = {name: int(evaluation.scored[name].known().sum()) for name in FINDINGS}
    assert known["Mass"] < 600
    assert table.groupby("finding")["images"].unique().map(list).to_dict() == {
        k: [v] for k, v in known.items()
    }
    for row in table[table["finding"] == "Effusion"].to_dict("records"):
        scored, t = evaluation.scored["Effusion"], row["threshold"]
        _, fp, _, tp = confusion_matrix(scored.labels, scored.scores >= t, labels=[0, 1]).ravel()
        assert row["net_benefit"] == pytest.approx((tp - fp * t / (1 - t)) / 600, abs=1e-6)
    scored = {name: replace(one, scores=None) for name, one in evaluation.scored.items()}
    empty = written.decision_curves(replace(evaluation, scored=scored))
    assert (len(empty), list(empty.columns)) == (0, list(table.columns))


def test_curves_lie_on_those_of_sklearn(evaluation: Evaluation) -> None:
    table = written.curves(evaluation, points=2001)
    assert list(table.columns) == ["finding", "curve", "x", "y"]
    assert table.groupby(["finding", "curve"]).size().eq(2001).all()
    for name in FINDINGS:
        scored = evaluation.scored[name]
        labels, logits = scored.labels[scored.known()], scored.logits[scored.known()]
        own = table[table["finding"] == name]
        roc, pr = own[own["curve"] == "roc"], own[own["curve"] == "pr"]
        assert (roc.iloc[0][["x", "y"]] == 0).all()
        assert (roc.iloc[-1][["x", "y"]] == 1).all()
        assert np.trapezoid(roc["y"], roc["x"]) == pytest.approx(roc_auc_score(labels, logits), abs=1e-3)
        assert pr["y"].iloc[1:].mean() == pytest.approx(average_precision_score(labels, logits), abs=2e-3)
        precision, _, _ = precision_recall_curve(labels, logits)
        assert set(pr["y"]) <= set(np.round(precision, 6))


def test_nothing_estimable_gives_empty_tables(tables: Tables) -> None:
    nothing = evaluate(*tables, CONFIG.model_copy(update={"min_positives": 10_000}))
    for table in (written.curves(nothing), written.operating(nothing), written.reliability(nothing)):
        assert len(table) == 0
        assert table.columns[0] == "finding"
    assert len(written.to_table(nothing)) == 4


def test_the_evaluation_loads_neither_torch_nor_deepspeed() -> None:
    script = (
        "import sys\n"
        "from ral.evaluation import audit, calibration_io, compare, score, second_reading, tables\n"
        "sys.exit(str([name for name in ('torch', 'deepspeed', 'timm') if name in sys.modules] or '') or 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.long
def test_3000_images_14_findings_and_2000_resamples_give_every_table() -> None:
    generator = np.random.default_rng(0)
    rows, findings = 9000, [f"Finding {number}" for number in range(14)]
    patient = generator.integers(3000, size=rows)
    studies = pd.DataFrame(
        {
            "image_id": [f"image{n}" for n in range(rows)],
            "patient_id": [f"p{n}" for n in patient],
            "split": np.array(["train", "val", "test"])[patient % 3],
            "sex": np.array(["F", "M"])[patient % 2],
            "age_years": (patient * 7 % 90).astype(float),
            "view": generator.choice(["PA", "AP"], rows),
        }
    )
    logits = studies[["image_id"]].copy()
    for column, name in enumerate(findings):
        studies[name] = (generator.random(rows) < 0.2 / (1 + column)).astype(float)
        logits[name] = generator.normal(size=rows) + 1.5 * studies[name]
    val, test = (logits[studies["split"] == split] for split in ("val", "test"))
    result = evaluate(studies, val, test, CONFIG.model_copy(update={"replicates": 2000}))
    table = written.to_table(result)
    assert sorted(table["finding"]) == sorted(findings)
    assert table["train_prevalence"].is_monotonic_decreasing
    assert len(written.operating(result)) == len(findings) * len(RULES)
    for table in (written.reliability(result), written.curves(result), audit(result)):
        assert set(findings) <= set(table["finding"])
