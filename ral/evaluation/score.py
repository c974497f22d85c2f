"""Metrics of every finding on the test images, their means over all findings and per tier, with intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from ral.config.evaluate import EvaluateConfig, Rule
from ral.errors import UserError
from ral.evaluation import resampled_metrics, thresholds
from ral.evaluation.bootstrap import BootstrapDistribution, Resamples, draw
from ral.evaluation.calibration import Map, calibrate
from ral.evaluation.resampled_metrics import Scored
from ral.evaluation.results import NOTHING, Estimate, Level
from ral.evaluation.rows import align, floats
from ral.evaluation.specs import (
    CALIBRATION_METRICS,
    FINDING_METRICS,
    MICRO_METRICS,
    OFFICIAL,
    RANKING_METRICS,
    THRESHOLD_METRICS,
)
from ral.labels import PHANTOM_PREFIX, TIERS, Data, Tier, tier

Array = NDArray[Any]


@dataclass(frozen=True)
class FittedFinding:
    """What training and validation determine for one finding."""

    name: str
    tier: Tier
    train_prevalence: float
    """Share of positives among the training images with a known label."""
    train_positives: int
    threshold: float | None
    """The lowest validation logit that is predicted positive at the max_f1 threshold; None without a threshold."""
    map: Map | None
    """Calibration map; None without a positive or without a negative in validation."""
    thresholds: Mapping[Rule, float]
    """Thresholds of the calibrated scores, by rule; empty without a map."""


@dataclass(frozen=True)
class Finding:
    """The results for one finding."""

    name: str
    tier: Tier
    train_prevalence: float
    """Share of positives among the training images with a known label."""
    train_positives: int
    test_positives: int
    test_rows: int
    """Number of test images with a known label."""
    threshold: float | None
    """The lowest validation logit that is predicted positive at the max_f1 threshold; None without a threshold."""
    map: Map | None
    """Calibration map; None without a positive or without a negative in validation."""
    thresholds: Mapping[Rule, float]
    """Thresholds of the calibrated scores, by rule; empty without a map."""
    scores: dict[str, Estimate]
    """The metrics of `FINDING_METRICS`."""
    uncalibrated: dict[str, Estimate]
    """The metrics of `CALIBRATION_METRICS` for the sigmoid of the raw logits, which is not a probability."""
    not_estimable: str | None
    """Why a metric has no value; None if all metrics have one."""


@dataclass(frozen=True)
class Evaluation:
    """The results for one set of test logits."""

    data: Data
    test_rows: int
    test_patients: int
    findings: tuple[Finding, ...]
    """In the order of the columns of `studies`."""
    macro: dict[str, Estimate]
    micro: dict[str, Estimate]
    tiers: dict[Tier, dict[str, Estimate]]
    cxr_lt: dict[str, Estimate]
    """The official metrics of the CXR-LT challenges."""
    config: EvaluateConfig
    rows: pd.DataFrame = field(compare=False)
    """The test images: labels and attributes."""
    scored: dict[str, Scored] = field(compare=False)
    """Labels, logits and scores of every finding on those images."""
    resamples: Resamples = field(compare=False)

    @property
    def estimable(self) -> list[str]:
        """Names of the findings with an AUROC and an AP."""
        return [finding.name for finding in self.findings if finding.scores["auroc"].findings]


def evaluate(
    studies: pd.DataFrame, val_logits: pd.DataFrame, test_logits: pd.DataFrame, config: EvaluateConfig
) -> Evaluation:
    """Evaluate the test logits. Calibration and thresholds are fitted on validation only, tiers come from training.

    Args:
        studies: one row per image: image_id, patient_id, split (train, val or test), one column per finding with
            1, 0 or NaN (unknown: the image is ignored for that finding), and any of `rows.ATTRIBUTES`.
        val_logits: image_id and one column of logits per finding, for all images of the split val.
        test_logits: the same for the split test.
        config: tiers, minimum positives, bootstrap, calibration and thresholds.

    Raises:
        UserError: see `rows.align`; fewer than 2 test patients; a finding without a known training label.
    """
    val, val_scores = align(studies, val_logits, "val")
    test, test_scores = align(studies, test_logits, "test")
    # The last digits of some linear algebra depend on the number of threads.
    with threadpool_limits(1):
        fitted = _fit(studies[studies["split"] == "train"], val, val_scores, config)
    return measure(test, test_scores, fitted, config, data_of(studies))


def measure(
    test: pd.DataFrame,
    test_scores: pd.DataFrame,
    fitted: Sequence[FittedFinding],
    config: EvaluateConfig,
    data: Data,
) -> Evaluation:
    """Evaluate logits with calibration maps and thresholds that are already fitted.

    Args:
        test: the test images, see `rows.align`.
        test_scores: their logits, in the same order, a column per finding.
        fitted: the findings.
        config: as for `evaluate`; nothing is fitted.
        data: phantom if at least one image is a phantom.

    Raises:
        UserError: fewer than 2 test patients.
    """
    with threadpool_limits(1):
        resamples = draw(
            test["patient_id"].to_numpy(dtype=str), config.replicates, config.seed, config.confidence, config.interval
        )  # fmt: skip
        findings, sampled, scored = [], [], {}
        for known in fitted:
            logits, labels = test_scores[known.name].to_numpy(), floats(test[known.name])
            calibrated = None if known.map is None else known.map.apply(logits)
            scored[known.name] = Scored(labels, logits, calibrated, known.thresholds)
            finding, values = _finding(known, scored[known.name], resamples, config)
            findings.append(finding)
            sampled.append(values)
        estimable = [known.name for known, values in zip(fitted, sampled, strict=True) if values]
        return Evaluation(
            data=data,
            test_rows=len(test),
            test_patients=resamples.patients,
            findings=tuple(findings),
            macro=means(sampled, resamples, FINDING_METRICS),
            micro=micro([scored[name] for name in estimable], resamples, config.threshold.rule),
            tiers={
                name: means(
                    [
                        values
                        for values, finding in zip(sampled, findings, strict=True)
                        if finding.tier == name
                    ],
                    resamples,
                    FINDING_METRICS,
                )
                for name in TIERS
            },
            cxr_lt={
                official: means(sampled, resamples, (metric,))[metric]
                for official, metric in OFFICIAL.items()
            },
            config=config,
            rows=test,
            scored=scored,
            resamples=resamples,
        )


def _fit(
    train: pd.DataFrame, val: pd.DataFrame, val_scores: pd.DataFrame, config: EvaluateConfig
) -> list[FittedFinding]:
    """Fit calibration maps and choose thresholds on the validation images."""
    names = [str(name) for name in val_scores.columns]
    labels = np.stack([floats(val[name]) for name in names], axis=1)
    maps = calibrate(
        val_scores.to_numpy(), labels, val["patient_id"].to_numpy(dtype=str), config.calibration, config.seed
    )
    fitted = []
    for index, (name, calibration_map) in enumerate(zip(names, maps, strict=True)):
        finding_tier, positives, known = tier_of(name, train[name], config)
        logits = val_scores[name].to_numpy()
        by_rule: dict[Rule, float] = {}
        raw_threshold: float | None = None
        if calibration_map is not None:
            by_rule = thresholds.choose(calibration_map.apply(logits), labels[:, index], config.threshold)
            raw_threshold = _raw_threshold(calibration_map, logits, by_rule)
        fitted.append(
            FittedFinding(name, finding_tier, positives / known, positives, raw_threshold, calibration_map, by_rule)
        )  # fmt: skip
    return fitted


def data_of(studies: pd.DataFrame) -> Data:
    """phantom if at least one image is a phantom, else images."""
    return "phantom" if studies["image_id"].astype(str).str.startswith(PHANTOM_PREFIX).any() else "images"


def tier_of(name: str, train_labels: "pd.Series[float]", config: EvaluateConfig) -> tuple[Tier, int, int]:
    """Tier of a finding, and its numbers of positive training images and of training images with a known label.

    Raises:
        UserError: no training image has a label for it.
    """
    known = train_labels.dropna()
    if len(known) == 0:
        raise UserError(
            f"studies: no training image has a label for {name}, so it has no tier. "
            "Remove the finding, or add training images that are labelled for it."
        )
    positives = int((known == 1).sum())
    return tier(positives, len(known), config.head, config.tail), positives, len(known)


def means_to_take(tiers: Mapping[str, Tier]) -> list[tuple[Level, str, list[str]]]:
    """Level, name and members of each mean: all findings, each tier, each finding by itself."""
    means: list[tuple[Level, str, list[str]]] = [("macro", "macro", list(tiers))]
    means += [("tier", tier, [name for name, own in tiers.items() if own == tier]) for tier in TIERS]
    return [*means, *(("finding", name, [name]) for name in tiers)]


def estimate(sampled: BootstrapDistribution, resamples: Resamples, findings: int = 1) -> Estimate:
    """A metric with its interval; `findings` is the number of averaged findings."""
    interval = resamples.interval(sampled)
    if interval.value is None:
        return NOTHING
    return Estimate(interval.value, interval.low, interval.high, findings)


def _finding(
    fitted: FittedFinding, scored: Scored, resamples: Resamples, config: EvaluateConfig
) -> tuple[Finding, dict[str, BootstrapDistribution]]:
    """The results of a finding, and the metrics in every resample (none if not estimable)."""
    reason = resampled_metrics.too_few(scored, resamples.patient, config.min_positives)
    values: dict[str, BootstrapDistribution] = {}
    raw: dict[str, BootstrapDistribution] = {}
    if reason is None:
        values = resampled_metrics.ranking(scored, resamples)
        at_threshold = resampled_metrics.metrics_at_threshold(scored, resamples)
        if at_threshold:
            values |= {metric: at_threshold[config.threshold.rule][metric] for metric in THRESHOLD_METRICS}
            values["f1"] = at_threshold["max_f1"]["f1"]
            values["f1_at_half"] = resampled_metrics.f1_at(scored, resamples, 0.5)
            values |= resampled_metrics.calibration(scored, resamples, config.calibration.bins)
            raw = resampled_metrics.calibration(scored, resamples, config.calibration.bins, raw=True)
    if scored.scores is None:
        missing = "no F1: no positive validation image, or no negative one, for calibration and thresholds"
        reason = f"{reason}; {missing}" if reason else missing
    finding = Finding(
        name=fitted.name,
        tier=fitted.tier,
        train_prevalence=fitted.train_prevalence,
        train_positives=fitted.train_positives,
        test_positives=int((scored.labels == 1).sum()),
        test_rows=int(scored.known().sum()),
        threshold=fitted.threshold,
        map=fitted.map,
        thresholds=fitted.thresholds,
        scores=means([values], resamples, FINDING_METRICS),
        uncalibrated=means([raw], resamples, CALIBRATION_METRICS),
        not_estimable=reason,
    )
    return finding, values


def means(
    values: Sequence[Mapping[str, BootstrapDistribution]], resamples: Resamples, names: Sequence[str]
) -> dict[str, Estimate]:
    """Mean of each metric over the findings for which it is defined (a share such as PPV may be 0 / 0)."""
    result = {}
    for name in names:
        parts = [value[name] for value in values if name in value and np.isfinite(value[name].values[0])]
        result[name] = (
            estimate(parts[0] if len(parts) == 1 else resamples.mean(parts), resamples, len(parts))
            if parts
            else NOTHING
        )
    return result


def micro(scored: Sequence[Scored], resamples: Resamples, rule: Rule) -> dict[str, Estimate]:
    """Micro average: metrics of all pairs of image and estimable finding, pooled and ranked by raw logits.

    Args:
        scored: the findings, on the same rows.
        resamples: of those rows.
        rule: the threshold rule for sensitivity and specificity; F1 uses max_f1.
    """
    if not scored:
        return dict.fromkeys(MICRO_METRICS, NOTHING)
    pooled_resamples = Resamples(
        np.tile(resamples.patient, len(scored)),
        resamples.weights,
        resamples.replicates,
        resamples.confidence,
        resamples.method,
    )
    pooled = Scored(
        np.concatenate([finding.labels for finding in scored]),
        np.concatenate([finding.logits for finding in scored]),
        None,
        {},
    )
    result = {
        name: estimate(value, pooled_resamples, len(scored))
        for name, value in resampled_metrics.ranking(pooled, pooled_resamples).items()
    }
    with_thresholds = [finding for finding in scored if finding.thresholds]
    at_threshold = resampled_metrics.pooled_metrics_at_threshold(with_thresholds, resamples)
    for name in MICRO_METRICS[len(RANKING_METRICS) :]:
        key: Rule = "max_f1" if name == "f1" else rule
        result[name] = (
            estimate(at_threshold[key][name], resamples, len(with_thresholds)) if with_thresholds else NOTHING
        )
    return result


def _raw_threshold(calibration_map: Map, logits: Array, by_rule: Mapping[Rule, float]) -> float | None:
    """The lowest of the logits that is predicted positive at the max_f1 threshold, rounded down like the threshold."""
    if not by_rule:
        return None
    positive = logits[calibration_map.apply(logits) >= by_rule["max_f1"]]
    return thresholds.rounded_down(float(positive.min()))
