"""Scores of every finding on the test images, their means over all findings and per tier, with intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from ral.config.evaluate import EvaluateConfig, Rule
from ral.errors import UserError
from ral.evaluation import resampled_metrics, thresholds
from ral.evaluation.bootstrap import BootstrapDistribution, Interval, Resamples, draw
from ral.evaluation.calibration import Map, calibrate
from ral.evaluation.metrics import RANKING_METRICS
from ral.evaluation.reliability import CALIBRATION_METRICS
from ral.evaluation.resampled_metrics import THRESHOLD_METRICS, Scored
from ral.evaluation.rows import align, findings_of, floats
from ral.labels import PHANTOM_PREFIX, TIERS, Tier, tier

Array = NDArray[Any]

# Every metric of a finding: of the raw logits, at the threshold (F1 at that of max_f1), of the calibrated scores.
METRICS = (
    *RANKING_METRICS,
    "f1",
    *(name for name in THRESHOLD_METRICS if name != "f1"),
    *CALIBRATION_METRICS,
)

# Metrics of all pairs of image and finding together.
MICRO = (*RANKING_METRICS, "f1", "sensitivity", "specificity")


@dataclass(frozen=True)
class Estimate:
    """A metric of one finding or its mean over several, with the bootstrap interval."""

    value: float | None
    """None if there is no estimable finding."""
    low: float | None
    """None too if fewer than five patients carry it, and for the debiased calibration error."""
    high: float | None
    findings: int
    """Over how many findings it is the mean: 1 for a finding itself, 0 if it is not estimable."""


NOTHING = Estimate(None, None, None, 0)


@dataclass(frozen=True)
class Finding:
    """All that is known about one finding."""

    name: str
    tier: Tier
    train_prevalence: float
    """Positives among the training images whose label is known."""
    train_positives: int
    test_positives: int
    test_rows: int
    """Test images whose label is known."""
    threshold: float | None
    """The lowest validation logit that is called positive at the threshold of max_f1; None without one."""
    map: Map | None
    """From logits to calibrated scores; None without a positive or a negative in validation."""
    thresholds: Mapping[Rule, float]
    """Of the calibrated scores, by rule; empty without a map."""
    scores: dict[str, Estimate]
    """The metrics of `METRICS`."""
    uncalibrated: dict[str, Estimate]
    """The metrics of `CALIBRATION_METRICS` of the sigmoid of the raw logits, which is no probability."""
    not_estimable: str | None
    """Why a metric has no value; None if all have one."""


@dataclass(frozen=True)
class Evaluation:
    """The scores of one set of test logits."""

    data: Literal["phantom", "images"]
    """phantom if a single image is one: such numbers say nothing about patients."""
    test_rows: int
    test_patients: int
    findings: tuple[Finding, ...]
    """In the order of the columns of `studies`."""
    macro: dict[str, Estimate]
    micro: dict[str, Estimate]
    tiers: dict[Tier, dict[str, Estimate]]
    cxr_lt: dict[str, Estimate]
    """The official figures of the CXR-LT challenges."""
    config: EvaluateConfig
    rows: pd.DataFrame = field(compare=False)
    """The test images: labels and attributes."""
    scored: dict[str, Scored] = field(compare=False)
    """Every finding on those images."""
    resamples: Resamples = field(compare=False)

    @property
    def estimable(self) -> list[str]:
        """Findings with an AUROC and an AP."""
        return [finding.name for finding in self.findings if finding.scores["auroc"].findings]


def evaluate(
    studies: pd.DataFrame, val_logits: pd.DataFrame, test_logits: pd.DataFrame, config: EvaluateConfig
) -> Evaluation:
    """Score the test logits; calibration and thresholds come from validation alone, tiers from training.

    Args:
        studies: one row per image: image_id, patient_id, split (train, val or test), one column per finding with
            1, 0 or NaN (unknown: the image is left out for that finding), and any of `rows.ATTRIBUTES`.
        val_logits: image_id and one column of logits per finding, for all images of the split val.
        test_logits: the same for the split test.
        config: tiers, least positives, the bootstrap, calibration and thresholds.

    Raises:
        UserError: see `rows.align`; or fewer than 2 test patients; or a finding without a known training label.
    """
    names = findings_of(studies)
    val, val_scores = align(studies, val_logits, "val")
    test, test_scores = align(studies, test_logits, "test")
    # Some linear algebra gives other last digits on more threads.
    with threadpool_limits(1):
        resamples = draw(
            test["patient_id"].to_numpy(dtype=str), config.replicates, config.seed, config.confidence, config.interval
        )  # fmt: skip
        val_labels = np.stack([floats(val[name]) for name in names], axis=1)
        maps = calibrate(
            val_scores.to_numpy(), val_labels, val["patient_id"].to_numpy(dtype=str), config.calibration, config.seed
        )  # fmt: skip
        train = studies[studies["split"] == "train"]
        findings, sampled, scored = [], [], {}
        for place, (name, found) in enumerate(zip(names, maps, strict=True)):
            logits, labels = test_scores[name].to_numpy(), floats(test[name])
            chosen: dict[Rule, float] = {}
            if found is not None:
                own = found.apply(val_scores[name].to_numpy())
                chosen = thresholds.choose(own, val_labels[:, place], config.threshold)
            scored[name] = Scored(labels, logits, None if found is None else found.apply(logits), chosen)
            one, values = _finding(name, train[name], scored[name], resamples, config)
            first = None if found is None else _first_called(found, val_scores[name].to_numpy(), chosen)
            findings.append(Finding(**one, map=found, thresholds=chosen, threshold=first))
            sampled.append(values)
        estimable = [name for name, values in zip(names, sampled, strict=True) if values]
        return Evaluation(
            data=data_of(studies),
            test_rows=len(test),
            test_patients=resamples.patients,
            findings=tuple(findings),
            macro=means(sampled, resamples, METRICS),
            micro=micro([scored[name] for name in estimable], resamples, config.threshold.rule),
            tiers={
                name: means(
                    [v for v, f in zip(sampled, findings, strict=True) if f.tier == name], resamples, METRICS
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


# The challenges' names -> ours: means over the classes, F1 at a score of one half.
OFFICIAL = {"mAP": "ap", "mAUROC": "auroc", "mF1": "f1_at_half", "mECE": "ece"}


def data_of(studies: pd.DataFrame) -> Literal["phantom", "images"]:
    """Whether a single image is a phantom."""
    return "phantom" if studies["image_id"].astype(str).str.startswith(PHANTOM_PREFIX).any() else "images"


def tier_of(name: str, train_labels: "pd.Series[float]", config: EvaluateConfig) -> tuple[Tier, int, int]:
    """Tier of a finding, its positive training images, and those whose label is known.

    Raises:
        UserError: no training image has a label for it.
    """
    known = train_labels.dropna()
    if len(known) == 0:
        raise UserError(
            f"studies: no training image has a label for {name}, so it has no tier. "
            "Leave the finding out, or use training images that are labelled for it."
        )
    positives = int((known == 1).sum())
    return tier(positives, len(known), config.head, config.tail), positives, len(known)


def estimate(sampled: BootstrapDistribution, resamples: Resamples, findings: int = 1) -> Estimate:
    """A metric with its interval, over so many findings."""
    found: Interval = resamples.interval(sampled)
    return NOTHING if found.value is None else Estimate(found.value, found.low, found.high, findings)


def _finding(
    name: str,
    train_labels: "pd.Series[float]",
    scored: Scored,
    resamples: Resamples,
    config: EvaluateConfig,
) -> tuple[dict[str, Any], dict[str, BootstrapDistribution]]:
    """What is known of a finding but its map, and its metrics in every resample; none if it is not estimable."""
    own_tier, positives, known = tier_of(name, train_labels, config)
    reason = resampled_metrics.too_few(scored, resamples.patient, config.min_positives)
    values: dict[str, BootstrapDistribution] = {}
    raw: dict[str, BootstrapDistribution] = {}
    if reason is None:
        values = resampled_metrics.ranking(scored, resamples)
        calls = resampled_metrics.metrics_at_threshold(scored, resamples)
        if calls:
            values |= {metric: calls[config.threshold.rule][metric] for metric in THRESHOLD_METRICS}
            values["f1"] = calls["max_f1"]["f1"]
            values["f1_at_half"] = resampled_metrics.f1_at(scored, resamples, 0.5)
            values |= resampled_metrics.calibration(scored, resamples, config.calibration.bins)
            raw = resampled_metrics.calibration(scored, resamples, config.calibration.bins, raw=True)
    if scored.scores is None:
        missing = (
            "no F1: no positive validation image, or no negative one, to calibrate and choose a threshold on"
        )
        reason = f"{reason}; {missing}" if reason else missing
    facts = {
        "name": name,
        "tier": own_tier,
        "train_prevalence": positives / known,
        "train_positives": positives,
        "test_positives": int((scored.labels == 1).sum()),
        "test_rows": int(scored.known().sum()),
        "scores": means([values], resamples, METRICS),
        "uncalibrated": means([raw], resamples, CALIBRATION_METRICS),
        "not_estimable": reason,
    }
    return facts, values


def means(
    values: Sequence[Mapping[str, BootstrapDistribution]], resamples: Resamples, names: Sequence[str]
) -> dict[str, Estimate]:
    """Mean of each metric over the findings that have it (a share such as PPV may be 0 / 0)."""
    found = {}
    for name in names:
        parts = [value[name] for value in values if name in value and np.isfinite(value[name].values[0])]
        found[name] = (
            estimate(parts[0] if len(parts) == 1 else resamples.mean(parts), resamples, len(parts))
            if parts
            else NOTHING
        )
    return found


def micro(scored: Sequence[Scored], resamples: Resamples, chosen: Rule) -> dict[str, Estimate]:
    """Metrics of all pairs of image and estimable finding, ranked together by their raw logits.

    Args:
        scored: the findings, on the same rows.
        resamples: of those rows.
        chosen: the rule of sensitivity and specificity; F1 is that of max_f1.
    """
    if not scored:
        return dict.fromkeys(MICRO, NOTHING)
    several = Resamples(
        np.tile(resamples.patient, len(scored)),
        resamples.weights,
        resamples.replicates,
        resamples.confidence,
        resamples.method,
    )
    pooled = Scored(
        np.concatenate([one.labels for one in scored]),
        np.concatenate([one.logits for one in scored]),
        None,
        {},
    )
    found = {
        name: estimate(value, several, len(scored))
        for name, value in resampled_metrics.ranking(pooled, several).items()
    }
    called = [one for one in scored if one.thresholds]
    pooled_metrics_at_threshold = resampled_metrics.pooled_metrics_at_threshold(called, resamples)
    for name in MICRO[len(RANKING_METRICS) :]:
        rule: Rule = "max_f1" if name == "f1" else chosen
        found[name] = (
            estimate(pooled_metrics_at_threshold[rule][name], resamples, len(called)) if called else NOTHING
        )
    return found


def _first_called(found: Map, logits: Array, chosen: Mapping[Rule, float]) -> float | None:
    """The lowest of the logits that is called at the threshold of max_f1, rounded down as that is."""
    if not chosen:
        return None
    called = logits[found.apply(logits) >= chosen["max_f1"]]
    return thresholds.rounded_down(float(called.min()))
