"""What the step evaluate writes of an evaluation: metrics.json and tables, rounded so that machines agree."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ral.config.evaluate import RULES
from ral.evaluation import resampled_metrics
from ral.evaluation.metrics import cuts
from ral.evaluation.reliability import curve
from ral.evaluation.resampled_metrics import THRESHOLD_METRICS
from ral.evaluation.score import Estimate, Evaluation, estimate

Array = NDArray[Any]

# Decimals of every number written but thresholds: logits of two machines differ further down.
DECIMALS = 6


def to_metrics(evaluation: Evaluation, sealed: int = 0) -> dict[str, Any]:
    """The content of metrics.json: nothing but text, numbers with six decimals, and null.

    `findings` of a mean counts those with an AUROC and an AP, `findings` of a metric those that have it. A finding
    that lacks only what needs a threshold is in `not_estimable`. `sealed_patients` of the test is there where some are.

    Args:
        evaluation: of the images that are not sealed.
        sealed: test patients that are.
    """
    hidden = {"sealed_patients": sealed} if sealed else {}
    return {
        "data": evaluation.data,
        "test": {"rows": evaluation.test_rows, "patients": evaluation.test_patients, **hidden},
        "macro": _mean(evaluation.macro),
        "micro": _mean(evaluation.micro),
        "tiers": {name: _mean(scores) for name, scores in evaluation.tiers.items()},
        "cxr_lt": {name: _estimate(found) for name, found in evaluation.cxr_lt.items()},
        "not_estimable": {f.name: f.not_estimable for f in evaluation.findings if f.not_estimable},
        "confidence": evaluation.config.confidence,
        "interval": evaluation.config.interval,
        "replicates": evaluation.config.replicates,
    }


def to_table(evaluation: Evaluation) -> pd.DataFrame:
    """findings.csv: one row per finding, the most frequent in training first; NaN where there is no value.

    threshold is a raw logit (F1's), the thresholds of the calibrated scores are in calibration.json. The columns that
    end in _uncalibrated judge the sigmoid of the raw logits, to show what calibration changed.
    """
    rows = []
    for finding in sorted(evaluation.findings, key=lambda f: (-f.train_prevalence, f.name)):
        row: dict[str, Any] = {
            "finding": finding.name,
            "tier": finding.tier,
            "train_prevalence": finding.train_prevalence,
            "train_positives": finding.train_positives,
            "test_positives": finding.test_positives,
            "test_rows": finding.test_rows,
            "threshold": finding.threshold,
        }
        for metric, found in finding.scores.items():
            row |= {metric: found.value, f"{metric}_low": found.low, f"{metric}_high": found.high}
        row |= {f"{name}_uncalibrated": found.value for name, found in finding.uncalibrated.items()}
        row["calibration"] = finding.map.kind if finding.map else ""
        rows.append(row | {"not_estimable": finding.not_estimable or ""})
    return rounded(pd.DataFrame(rows), text=("finding", "tier", "calibration", "not_estimable"))


def operating(evaluation: Evaluation) -> pd.DataFrame:
    """operating.csv: what each rule's threshold gives on test, a row per estimable finding and rule.

    chosen marks the rule of the parameters; threshold is of the calibrated scores.
    """
    rows = []
    for finding in evaluation.findings:
        scored = evaluation.scored[finding.name]
        calls = resampled_metrics.metrics_at_threshold(scored, evaluation.resamples)
        if finding.name not in evaluation.estimable or not calls:
            continue
        for rule in RULES:
            row: dict[str, Any] = {
                "finding": finding.name,
                "rule": rule,
                "chosen": rule == evaluation.config.threshold.rule,
                "threshold": finding.thresholds[rule],
            }
            row |= {name: int(calls[rule][name].values[0]) for name in ("tp", "fp", "fn", "tn")}
            for name in THRESHOLD_METRICS:
                found = estimate(calls[rule][name], evaluation.resamples)
                row |= {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
            rows.append(row)
    return rounded(pd.DataFrame(rows, columns=OPERATING), text=("finding", "rule", "chosen"))


OPERATING = [
    "finding", "rule", "chosen", "threshold", "tp", "fp", "fn", "tn",
    *(f"{name}{end}" for name in THRESHOLD_METRICS for end in ("", "_low", "_high")),
]  # fmt: skip


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


def curves(evaluation: Evaluation, points: int = 101) -> pd.DataFrame:
    """curves.csv: ROC and precision over recall of each estimable finding, each as `points` points, for drawing.

    Returns:
        Columns finding, curve (roc, pr), x, y. roc: x is the false positive rate, y the true positive rate.
        pr: x is recall, y the precision at the highest threshold that reaches it, the steps whose area is AP.
    """
    parts = []
    for name in evaluation.estimable:
        cut = cuts(evaluation.scored[name].logits, evaluation.scored[name].labels)
        recall = cut.true_positives / cut.true_positives[-1]
        fall_out = cut.false_positives / cut.false_positives[-1]
        # Evenly spaced along the way from (0, 0) to (1, 1), so that steep and flat parts both keep points.
        tpr, fpr = np.append(0.0, recall), np.append(0.0, fall_out)
        way = np.linspace(0, 2, points)
        parts.append(_curve(name, "roc", np.interp(way, fpr + tpr, fpr), np.interp(way, fpr + tpr, tpr)))
        hit = cut.true_positives > 0
        precision = (cut.true_positives / (cut.true_positives + cut.false_positives))[hit]
        grid = np.linspace(0, 1, points)
        parts.append(_curve(name, "pr", grid, precision[np.searchsorted(recall[hit], grid)]))
    if not parts:
        return pd.DataFrame({"finding": [], "curve": [], "x": np.empty(0), "y": np.empty(0)})
    return pd.concat(parts, ignore_index=True)


def rounded(table: pd.DataFrame, text: Sequence[str]) -> pd.DataFrame:
    """The table with its numbers rounded; a column of nothing but None becomes one of NaN."""
    floating = [
        name for name in table.columns if name not in text and not pd.api.types.is_integer_dtype(table[name])
    ]
    # A threshold is not rounded: other images would pass it.
    decimals = dict.fromkeys((name for name in floating if name != "threshold"), DECIMALS)
    table = table.astype(dict.fromkeys(floating, np.float64)).round(decimals)
    table[floating] += 0.0  # no -0.0
    return table


def _mean(scores: Mapping[str, Estimate]) -> dict[str, Any]:
    """A mean as it stands in metrics.json."""
    return {metric: _estimate(e) for metric, e in scores.items()} | {"findings": scores["auroc"].findings}


def _estimate(found: Estimate) -> dict[str, Any]:
    ends = {"value": found.value, "low": found.low, "high": found.high}
    return {name: _rounded(end) for name, end in ends.items()} | {"findings": found.findings}


def _rounded(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else round(value, DECIMALS)


def _curve(finding: str, curve: str, x: Array, y: Array) -> pd.DataFrame:
    return pd.DataFrame(
        {"finding": finding, "curve": curve, "x": np.round(x, DECIMALS), "y": np.round(y, DECIMALS)}
    )
