"""Scores of every finding on the test films, their means over all findings and per tier, with intervals."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ral.config.evaluate import EvaluateConfig
from ral.errors import UserError
from ral.evaluation.bootstrap import interval, patient_weights
from ral.evaluation.metrics import auroc_and_ap, best_f1_threshold, cuts, f1_weighted
from ral.labels import PHANTOM_PREFIX, TIERS, Tier, tier

Array = NDArray[Any]
Split = Literal["val", "test"]

# Columns of `studies` that are no finding.
KEYS = ("image_id", "patient_id", "split")

# Decimals of every number written: logits of two machines differ further down.
DECIMALS = 6


@dataclass(frozen=True)
class Estimate:
    """A metric of one finding or its mean over several, with the bootstrap interval."""

    value: float | None
    """None if there is no estimable finding."""
    low: float | None
    high: float | None
    findings: int
    """Over how many findings it is the mean: 1 for a finding itself, 0 if it is not estimable."""


@dataclass(frozen=True)
class Scores:
    """The three metrics of one finding or of several."""

    auroc: Estimate
    ap: Estimate
    f1: Estimate


@dataclass(frozen=True)
class Finding:
    """All that is known about one finding."""

    name: str
    tier: Tier
    train_prevalence: float
    """Positives among the training films whose label is known."""
    train_positives: int
    test_positives: int
    test_rows: int
    """Test films whose label is known."""
    threshold: float | None
    """The validation logit from which a film is called positive; None without a positive in validation."""
    scores: Scores
    not_estimable: str | None
    """Why a metric has no value; None if all three have one."""


@dataclass(frozen=True)
class Evaluation:
    """The scores of one set of test logits."""

    data: Literal["phantom", "films"]
    """phantom if a single film is one: such numbers say nothing about patients."""
    test_rows: int
    test_patients: int
    findings: tuple[Finding, ...]
    """In the order of the columns of `studies`."""
    macro: Scores
    tiers: dict[Tier, Scores]
    confidence: float
    replicates: int

    @property
    def estimable(self) -> list[str]:
        """Findings with an AUROC and an AP."""
        return [finding.name for finding in self.findings if finding.scores.auroc.findings]


def evaluate(
    studies: pd.DataFrame, val_logits: pd.DataFrame, test_logits: pd.DataFrame, config: EvaluateConfig
) -> Evaluation:
    """Score the test logits; validation only chooses the threshold of F1, training only sets the tiers.

    Args:
        studies: one row per film: image_id, patient_id, split (train, val or test), and one column per
            finding with 1, 0 or NaN (unknown: the film is left out for that finding).
        val_logits: image_id and one column of logits per finding, for all films of the split val.
        test_logits: the same for the split test.
        config: tiers, least positives and the bootstrap.

    Raises:
        UserError: see `align`; or fewer than 2 test patients; or a finding without a known training label.
    """
    val, val_scores = align(studies, val_logits, "val")
    test, test_scores = align(studies, test_logits, "test")
    train = studies[studies["split"] == "train"]
    patients = test["patient_id"].to_numpy(dtype=str)
    if len(set(patients)) < 2:
        raise UserError(
            f"studies: the split test has {len(set(patients))} patient(s), but intervals need at least 2 to "
            "resample. Use more films, or give the test split more of them."
        )
    # Row 0 is the sample itself: entry 0 of every result below is the value, the others are the replicates.
    weights = np.concatenate(
        [np.ones((1, len(test)), np.uint16), patient_weights(patients, config.replicates, config.seed)]
    )
    findings, values = [], []
    for name in findings_of(studies):
        finding, resampled = _finding(name, train, val, val_scores, test, test_scores, weights, config)
        findings.append(finding)
        values.append(resampled)
    return Evaluation(
        data="phantom" if studies["image_id"].astype(str).str.startswith(PHANTOM_PREFIX).any() else "films",
        test_rows=len(test),
        test_patients=len(set(patients)),
        findings=tuple(findings),
        macro=_scores(values, config),
        tiers={
            name: _scores([v for v, f in zip(values, findings, strict=True) if f.tier == name], config)
            for name in TIERS
        },
        confidence=config.confidence,
        replicates=config.replicates,
    )


def findings_of(studies: pd.DataFrame) -> list[str]:
    """Names of the findings, in the order of the columns."""
    return [str(name) for name in studies.columns if name not in KEYS]


def align(studies: pd.DataFrame, logits: pd.DataFrame, split: Split) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of one split, and the logits of its findings as float64 in the same order of rows.

    Raises:
        UserError: a table holds an image_id twice; a patient_id is empty; a label is not 1, 0 or empty; the
            columns of the logits are not image_id and the findings in their order; a film of the split has no
            logits, or logits belong to no film of it; a logit is not finite.
    """
    findings, where = findings_of(studies), f"{split} logits"
    _check_studies(studies, findings)
    _check_columns(logits, findings, where)
    _check_unique(logits, where)
    rows = studies[studies["split"] == split].reset_index(drop=True)
    again = "Compute the logits again from these studies."
    missing = rows.loc[~rows["image_id"].isin(logits["image_id"]), "image_id"]
    if len(missing):
        raise UserError(f"{where}: {_some(missing)} of the split {split} without logits. {again}")
    unknown = logits.loc[~logits["image_id"].isin(rows["image_id"]), "image_id"]
    if len(unknown):
        raise UserError(f"{where}: {_some(unknown)} not in the split {split} of the studies. {again}")
    scores = logits.set_index("image_id").loc[rows["image_id"], findings].reset_index(drop=True)
    scores = scores.astype(np.float64)
    for name in findings:
        broken = rows.loc[~np.isfinite(scores[name].to_numpy()), "image_id"]
        if len(broken):
            raise UserError(
                f"{where}: {name} is NaN or infinite for {_some(broken)}. The training diverged or "
                "the file is damaged: lower the learning rate or train again."
            )
    return rows, scores


def to_metrics(evaluation: Evaluation) -> dict[str, Any]:
    """The content of metrics.json: nothing but text, numbers with six decimals, and null.

    `findings` of a mean counts those with an AUROC and an AP; one that lacks only F1 is in `not_estimable`.
    """
    return {
        "data": evaluation.data,
        "test": {"rows": evaluation.test_rows, "patients": evaluation.test_patients},
        "macro": _mean(evaluation.macro),
        "tiers": {name: _mean(scores) for name, scores in evaluation.tiers.items()},
        "not_estimable": {f.name: f.not_estimable for f in evaluation.findings if f.not_estimable},
        "confidence": evaluation.confidence,
        "replicates": evaluation.replicates,
    }


def to_table(evaluation: Evaluation) -> pd.DataFrame:
    """One row per finding, the most frequent in training first; NaN where there is no value.

    The threshold is rounded like the rest; the exact one is in the evaluation.
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
        for metric, estimate in vars(finding.scores).items():
            row |= {metric: estimate.value, f"{metric}_low": estimate.low, f"{metric}_high": estimate.high}
        rows.append(row | {"not_estimable": finding.not_estimable or ""})
    table = pd.DataFrame(rows)
    # A column of nothing but None would be of type object.
    numbers = [name for name in table.columns if name not in ("finding", "tier", "not_estimable")]
    floats = [name for name in numbers if not pd.api.types.is_integer_dtype(table[name])]
    return table.astype(dict.fromkeys(floats, np.float64)).round(dict.fromkeys(floats, DECIMALS))


def curves(
    labels: pd.DataFrame, scores: pd.DataFrame, findings: Sequence[str], points: int = 101
) -> pd.DataFrame:
    """ROC and precision over recall of each finding, each as `points` points, for drawing.

    Args:
        labels: one column per finding with 1, 0 or NaN, rows as in `scores` (both from `align`).
        scores: one column of logits per finding.
        findings: those to draw; each needs a positive and a negative (`Evaluation.estimable`).
        points: points of a curve.

    Returns:
        Columns finding, curve (roc, pr), x, y. roc: x is the false positive rate, y the true positive rate.
        pr: x is recall, y the precision at the highest threshold that reaches it, the steps whose area is AP.
    """
    parts = []
    for name in findings:
        cut = cuts(scores[name].to_numpy(), _floats(labels[name]))
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


def _finding(
    name: str,
    train: pd.DataFrame,
    val: pd.DataFrame,
    val_scores: pd.DataFrame,
    test: pd.DataFrame,
    test_scores: pd.DataFrame,
    weights: Array,
    config: EvaluateConfig,
) -> tuple[Finding, dict[str, Array]]:
    """One finding, and its estimable metrics under each row of `weights`: [1 + replicates] by name."""
    known = train[name].dropna()
    train_positives, train_known = int((known == 1).sum()), len(known)
    if train_known == 0:
        raise UserError(
            f"studies: no training film has a label for {name}, so it has no tier. "
            "Leave the finding out, or use training films that are labelled for it."
        )
    reasons, values = [], {}
    labels, scores = _floats(test[name]), test_scores[name].to_numpy()
    positives, negatives = int((labels == 1).sum()), int((labels == 0).sum())
    for count, kind in ((positives, "positive"), (negatives, "negative")):
        if count < config.min_positives:
            reasons.append(f"{count} {kind} test films, at least {config.min_positives} needed")
    threshold = best_f1_threshold(val_scores[name].to_numpy(), _floats(val[name]))
    if not reasons:
        values["auroc"], values["ap"] = auroc_and_ap(scores, labels, weights)
    if np.isnan(threshold):
        reasons.append("no F1: no positive validation film to choose a threshold on")
    elif not reasons:
        values["f1"] = f1_weighted(scores, labels, threshold, weights)
    finding = Finding(
        name=name,
        tier=tier(train_positives, train_known, config.head, config.tail),
        train_prevalence=train_positives / train_known,
        train_positives=train_positives,
        test_positives=positives,
        test_rows=positives + negatives,
        threshold=None if np.isnan(threshold) else threshold,
        scores=_scores([values], config),
        not_estimable="; ".join(reasons) or None,
    )
    return finding, values


def _scores(values: list[dict[str, Array]], config: EvaluateConfig) -> Scores:
    """Mean of each metric over the findings that have it."""

    def estimate(metric: str) -> Estimate:
        stack = [value[metric] for value in values if metric in value]
        if not stack:
            return Estimate(None, None, None, 0)
        # A replicate may lack the positives of some finding: its mean is over the others.
        finite = np.isfinite(stack)
        count = finite.sum(axis=0)
        total = np.where(finite, stack, 0.0).sum(axis=0)
        mean = np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)
        low, high = interval(mean[1:], config.confidence)
        return Estimate(float(mean[0]), low, high, len(stack))

    return Scores(auroc=estimate("auroc"), ap=estimate("ap"), f1=estimate("f1"))


def _mean(scores: Scores) -> dict[str, Any]:
    """A mean as it stands in metrics.json."""
    content: dict[str, Any] = {
        metric: {"value": _rounded(e.value), "low": _rounded(e.low), "high": _rounded(e.high)}
        for metric, e in vars(scores).items()
    }
    return content | {"findings": scores.auroc.findings}


def _rounded(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else round(value, DECIMALS)


def _curve(finding: str, curve: str, x: Array, y: Array) -> pd.DataFrame:
    return pd.DataFrame(
        {"finding": finding, "curve": curve, "x": np.round(x, DECIMALS), "y": np.round(y, DECIMALS)}
    )


def _floats(column: "pd.Series[float]") -> Array:
    """A column of labels as float64 with NaN for the unknown."""
    return column.to_numpy(dtype=np.float64, na_value=np.nan)


def _check_studies(studies: pd.DataFrame, findings: list[str]) -> None:
    absent = [name for name in KEYS if name not in studies.columns]
    if absent:
        raise UserError(
            f"studies: the column {absent[0]} is missing. Needed: {', '.join(KEYS)} and the findings."
        )
    _check_unique(studies, "studies")
    nobody = studies.loc[studies["patient_id"].isna(), "image_id"]
    if len(nobody):
        raise UserError(f"studies: patient_id is empty for {_some(nobody)}. Give each film its patient.")
    for name in findings:
        wrong = studies.loc[~(studies[name].isin([0, 1]) | studies[name].isna()), "image_id"]
        if len(wrong):
            raise UserError(f"studies: {name} is not 1, 0 or empty for {_some(wrong)}. Correct the labels.")


def _check_columns(logits: pd.DataFrame, findings: list[str], where: str) -> None:
    expected, found = ["image_id", *findings], [str(name) for name in logits.columns]
    if found == expected:
        return
    missing = [name for name in expected if name not in found]
    extra = [name for name in found if name not in expected]
    problems = [f"missing: {', '.join(missing)}"] * bool(missing) + [f"not in it: {', '.join(extra)}"] * bool(
        extra
    )
    raise UserError(
        f"{where}: the columns are not those of the studies ({'; '.join(problems) or 'other order'}). "
        f"Expected {', '.join(expected)}; found {', '.join(found)}. Train again on these studies."
    )


def _check_unique(table: pd.DataFrame, where: str) -> None:
    twice = table.loc[table["image_id"].duplicated(), "image_id"]
    if len(twice):
        raise UserError(f"{where}: {_some(twice)} more than once as image_id. Keep one row per film.")


def _some(images: "pd.Series[str]") -> str:
    """How many films, and the first three of them by name."""
    names = ", ".join(str(name) for name in images.head(3))
    return f"{len(images)} film{'s' * (len(images) > 1)} ({names}{', ...' if len(images) > 3 else ''})"
