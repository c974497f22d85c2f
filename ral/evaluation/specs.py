"""The metrics in one table: name on disk, label for people, what each is computed from, and where each is used."""

from dataclasses import dataclass
from typing import Literal

# What a metric is computed from: the raw logits; decisions at the max_f1 threshold, at that of the chosen rule, or at a
# score of one half; the calibrated scores; a group of images; two readings.
Input = Literal["logits", "max_f1", "rule", "half", "scores", "group", "readings"]


@dataclass(frozen=True)
class Metric:
    """A metric."""

    name: str
    """Key in metrics.json, prefix of columns, value in the column `metric`."""
    label: str
    """In the report, the model card and what the commands print."""
    input: Input


# In the order of the columns of findings.csv, then metrics that it does not have.
SPECS = (
    Metric("auroc", "AUROC", "logits"),
    Metric("ap", "AP", "logits"),
    Metric("sensitivity_at_90_specificity", "Sensitivity at 90 % specificity", "logits"),
    Metric("specificity_at_90_sensitivity", "Specificity at 90 % sensitivity", "logits"),
    Metric("f1", "F1", "max_f1"),
    Metric("sensitivity", "Sensitivity", "rule"),
    Metric("specificity", "Specificity", "rule"),
    Metric("ppv", "PPV", "rule"),
    Metric("npv", "NPV", "rule"),
    Metric("brier", "Brier score", "scores"),
    Metric("log_loss", "Log loss", "scores"),
    Metric("ece", "ECE", "scores"),
    Metric("ece_debiased", "Debiased ECE", "scores"),
    Metric("f1_at_half", "F1 at a score of 0.5", "half"),
    Metric("false_negative_rate", "False negative rate", "group"),
    Metric("calibration", "Calibration gap", "group"),
    Metric("kappa", "Cohen's kappa", "readings"),
    Metric("positive_agreement", "Positive agreement", "readings"),
    Metric("negative_agreement", "Negative agreement", "readings"),
)


def computed_from(*inputs: Input) -> tuple[str, ...]:
    """Names of the metrics that are computed from `inputs`, in the order of these and then of `SPECS`."""
    return tuple(metric.name for source in inputs for metric in SPECS if metric.input == source)


LABELS = {metric.name: metric.label for metric in SPECS}

# Groups of columns and keys on disk.
RANKING_METRICS = computed_from("logits")
THRESHOLD_METRICS = computed_from("rule", "max_f1")
CALIBRATION_METRICS = computed_from("scores")
FINDING_METRICS = computed_from("logits", "max_f1", "rule", "scores")
AGREEMENT_METRICS = computed_from("readings")
# Of all pairs of image and finding, pooled.
MICRO_METRICS = (*RANKING_METRICS, "f1", "sensitivity", "specificity")

# Where some of the metrics are used, in the order of each place.
MEANS = ("ap", "auroc", "f1")  # headline of the report, card and Prefect artifacts; table of tiers
RANKED_BY = ("ap", "auroc")  # paired comparison of models; summary at the end of a run
SUMMARY = ("ap", "auroc", "ece")  # summary.json
READ_AGAINST = ("auroc", "ap")  # computed against each of two readings
GROUP_METRICS = ("auroc", "ap", "sensitivity", "false_negative_rate", "calibration")  # audit
TESTED_METRICS = ("auroc", "sensitivity", "calibration")  # gaps of these are tested in the audit

# Name in the CXR-LT challenges -> metric: means over the classes, F1 at a score of 0.5.
OFFICIAL = {"mAP": "ap", "mAUROC": "auroc", "mF1": "f1_at_half", "mECE": "ece"}
