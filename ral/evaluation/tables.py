"""Outputs of the step evaluate: JSON files and tables, rounded so that machines agree."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ral.evaluation import decision_curve, resampled_metrics
from ral.evaluation.calibration_io import FORMAT, SavedCalibration, SavedFinding
from ral.evaluation.metrics import cuts
from ral.evaluation.reliability import curve
from ral.evaluation.resampled_metrics import CELLS
from ral.evaluation.results import DECIMALS, Estimate, Mean, Metrics, ScoredImages, rounded_number
from ral.evaluation.score import Evaluation, Finding
from ral.evaluation.specs import SUMMARY, THRESHOLD_METRICS
from ral.evaluation.table_rows import FindingRow, OperatingRow, to_frame, with_ends

Array = NDArray[Any]


def to_metrics(evaluation: Evaluation, sealed: int = 0) -> Metrics:
    """metrics.json, with numbers of six decimals.

    `findings` of a mean is the number of findings with an AUROC and an AP, `findings` of a metric the number
    of findings that have it. `not_estimable` also lists findings that only lack the threshold metrics.

    Args:
        evaluation: of the images that are not sealed.
        sealed: number of sealed test patients.
    """
    test = ScoredImages(rows=evaluation.test_rows, patients=evaluation.test_patients)
    return Metrics(
        data=evaluation.data,
        test=test.model_copy(update={"sealed_patients": sealed}) if sealed else test,
        macro=_mean(evaluation.macro),
        micro=_mean(evaluation.micro),
        tiers={name: _mean(scores) for name, scores in evaluation.tiers.items()},
        cxr_lt={name: _estimate(score) for name, score in evaluation.cxr_lt.items()},
        not_estimable={f.name: f.not_estimable for f in evaluation.findings if f.not_estimable},
        confidence=evaluation.config.confidence,
        interval=evaluation.config.interval,
        replicates=evaluation.config.replicates,
    )


def to_calibration(evaluation: Evaluation) -> SavedCalibration:
    """calibration.json: the maps and thresholds exactly as used."""
    findings = {
        finding.name: finding.map
        and SavedFinding(
            kind=finding.map.kind,
            numbers=finding.map.numbers,
            knots=finding.map.knots,
            thresholds=dict(finding.thresholds),
        )
        for finding in evaluation.findings
    }
    rule = evaluation.config.threshold.rule
    content = {
        "format": FORMAT,
        "rule": rule,
        "findings": {name: finding and finding.to_json() for name, finding in findings.items()},
    }
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return SavedCalibration(
        format=FORMAT, rule=rule, findings=findings, data=evaluation.data, version=digest[:12]
    )


def to_summary(evaluation: Evaluation) -> dict[str, dict[str, float | str | None]]:
    """The content of summary.json, the few metrics that `dvc metrics show` prints for people; null if not estimable.

    Macro AP, AUROC and calibration error (ece), and macro AP per tier.
    """
    metrics = {name: rounded_number(evaluation.macro[name].value) for name in SUMMARY}
    tiers = {f"ap_{name}": rounded_number(scores["ap"].value) for name, scores in evaluation.tiers.items()}
    return {"test": {"data": evaluation.data, **metrics, **tiers}}


def to_table(evaluation: Evaluation) -> pd.DataFrame:
    """findings.csv: one row per finding, the most frequent in training first; NaN where there is no value.

    threshold is the raw logit at the max_f1 threshold; the thresholds of the calibrated scores are in calibration.json.
    Columns that end in _uncalibrated are computed from the sigmoid of the raw logits, to show the effect of
    calibration.
    """
    findings = sorted(evaluation.findings, key=lambda f: (-f.train_prevalence, f.name))
    rows = [_finding_row(finding) for finding in findings]
    return rounded(to_frame(rows), text=("finding", "tier", "calibration", "not_estimable"))


def _finding_row(finding: Finding) -> FindingRow:
    return FindingRow(
        finding=finding.name,
        tier=finding.tier,
        train_prevalence=finding.train_prevalence,
        train_positives=finding.train_positives,
        test_positives=finding.test_positives,
        test_rows=finding.test_rows,
        threshold=finding.threshold,
        metrics=finding.scores,
        uncalibrated={name: score.value for name, score in finding.uncalibrated.items()},
        calibration=finding.map.kind if finding.map else "",
        not_estimable=finding.not_estimable or "",
    )


def operating(evaluation: Evaluation) -> pd.DataFrame:
    """operating.csv: test metrics at the threshold of each rule, a row per estimable finding and rule.

    chosen marks the rule of the parameters; thresholds apply to the calibrated scores.
    """
    rows = []
    for finding in evaluation.findings:
        scored = evaluation.scored[finding.name]
        at_threshold = resampled_metrics.metrics_at_threshold(scored, evaluation.resamples)
        if finding.name not in evaluation.estimable or not at_threshold:
            continue
        for rule, sampled in at_threshold.items():
            rows.append(
                OperatingRow(
                    finding=finding.name,
                    rule=rule,
                    chosen=rule == evaluation.config.threshold.rule,
                    threshold=finding.thresholds[rule],
                    **{name: int(sampled[name].values[0]) for name in CELLS},
                    metrics={
                        name: evaluation.resamples.interval(sampled[name]) for name in THRESHOLD_METRICS
                    },
                )
            )
    return rounded(to_frame(rows, OPERATING), text=("finding", "rule", "chosen"))


OPERATING = ("finding", "rule", "chosen", "threshold", *CELLS, *with_ends(THRESHOLD_METRICS))


def reliability(evaluation: Evaluation) -> pd.DataFrame:
    """reliability.csv: reliability curves of the estimable findings, of calibrated scores and of the raw sigmoid.

    Columns finding, scores (calibrated, uncalibrated), images, positives, mean_score, observed, low, high.
    """
    parts = []
    for name in evaluation.estimable:
        scored = evaluation.scored[name]
        if scored.scores is None:
            continue
        known = scored.known()
        inside = evaluation.resamples.rows(known)
        for kind, scores in (
            ("calibrated", scored.scores),
            ("uncalibrated", resampled_metrics.sigmoid(scored.logits)),
        ):
            table = curve(scores[known], scored.labels[known], inside, evaluation.config.calibration.bins)
            table.insert(0, "finding", name)
            table.insert(1, "scores", kind)
            parts.append(table)
    columns = ["finding", "scores", "images", "positives", "mean_score", "observed", "low", "high"]
    table = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)
    return rounded(table, text=("finding", "scores"))


def decision_curves(evaluation: Evaluation) -> pd.DataFrame:
    """decision_curves.csv: net benefit of the calibrated scores of the estimable findings, by threshold probability.

    Columns finding and `decision_curve.COLUMNS`.
    """
    parts = []
    for finding in evaluation.findings:
        scored = evaluation.scored[finding.name]
        if finding.name not in evaluation.estimable or scored.scores is None:
            continue
        table = decision_curve.curve(
            scored.scores,
            scored.labels,
            decision_curve.thresholds(finding.train_prevalence),
            evaluation.resamples,
        )
        table.insert(0, "finding", finding.name)
        parts.append(table)
    columns = ["finding", *decision_curve.COLUMNS]
    table = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)
    return rounded(table, text=("finding",))


def curves(evaluation: Evaluation, points: int = 101) -> pd.DataFrame:
    """curves.csv: ROC and precision–recall curves of each estimable finding, `points` points each, for plotting.

    Returns:
        Columns finding, curve (roc, pr), x, y. roc: x is the false positive rate, y the true positive rate.
        pr: x is the recall, y the precision at the highest threshold that reaches it (the area under these
        steps is AP).
    """
    parts = []
    for name in evaluation.estimable:
        cut = cuts(evaluation.scored[name].logits, evaluation.scored[name].labels)
        recall = cut.true_positives / cut.true_positives[-1]
        fall_out = cut.false_positives / cut.false_positives[-1]
        # Evenly spaced along the path from (0, 0) to (1, 1), so that steep and flat parts both have points.
        tpr, fpr = np.append(0.0, recall), np.append(0.0, fall_out)
        path = np.linspace(0, 2, points)
        parts.append(_curve(name, "roc", np.interp(path, fpr + tpr, fpr), np.interp(path, fpr + tpr, tpr)))
        hit = cut.true_positives > 0
        precision = (cut.true_positives / (cut.true_positives + cut.false_positives))[hit]
        grid = np.linspace(0, 1, points)
        parts.append(_curve(name, "pr", grid, precision[np.searchsorted(recall[hit], grid)]))
    if not parts:
        return pd.DataFrame({"finding": [], "curve": [], "x": np.empty(0), "y": np.empty(0)})
    return pd.concat(parts, ignore_index=True)


def rounded(table: pd.DataFrame, text: Sequence[str]) -> pd.DataFrame:
    """Round the numbers of a table; a column that is all None becomes NaN."""
    floating = [
        name for name in table.columns if name not in text and not pd.api.types.is_integer_dtype(table[name])
    ]
    # Thresholds are not rounded: rounding could change predictions.
    decimals = dict.fromkeys((name for name in floating if name != "threshold"), DECIMALS)
    table = table.astype(dict.fromkeys(floating, np.float64)).round(decimals)
    table[floating] += 0.0  # no -0.0
    return table


def _mean(scores: Mapping[str, Estimate]) -> Mean:
    means = {metric: _estimate(score) for metric, score in scores.items()}
    return Mean(findings=scores["auroc"].findings, **means)


def _estimate(score: Estimate) -> Estimate:
    return replace(
        score,
        value=rounded_number(score.value),
        low=rounded_number(score.low),
        high=rounded_number(score.high),
    )


def _curve(finding: str, curve: str, x: Array, y: Array) -> pd.DataFrame:
    return pd.DataFrame(
        {"finding": finding, "curve": curve, "x": np.round(x, DECIMALS), "y": np.round(y, DECIMALS)}
    )
