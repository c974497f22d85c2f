"""The metrics in one table: name on disk, label for people, what each is computed from, its
definition, and where each is used."""

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
    definition: str
    """In docs/evaluation.md."""


# In the order of the columns of findings.csv, then metrics that it does not have.
SPECS = (
    Metric("auroc", "AUROC", "logits", "area under the ROC curve; a tie counts one half"),
    Metric("ap", "AP", "logits", "average precision: step-wise area under precision over recall"),
    Metric(
        "sensitivity_at_90_specificity",
        "Sensitivity at 90 % specificity",
        "logits",
        "highest sensitivity of the observed thresholds with a specificity of at least 90 %",
    ),
    Metric(
        "specificity_at_90_sensitivity",
        "Specificity at 90 % sensitivity",
        "logits",
        "highest specificity of the observed thresholds with a sensitivity of at least 90 %",
    ),
    Metric("f1", "F1", "max_f1", "2 TP / (2 TP + FP + FN); the threshold has the highest F1 on validation"),
    Metric("sensitivity", "Sensitivity", "rule", "TP / (TP + FN)"),
    Metric("specificity", "Specificity", "rule", "TN / (TN + FP)"),
    Metric("ppv", "PPV", "rule", "TP / (TP + FP)"),
    Metric("npv", "NPV", "rule", "TN / (TN + FN)"),
    Metric("brier", "Brier score", "scores", "mean squared difference of score and label"),
    Metric("log_loss", "Log loss", "scores", "mean negative logarithm of the score of the actual label"),
    Metric(
        "ece",
        "ECE",
        "scores",
        "mean over the images of |mean score − share of positives| of their bin, of equally many images",
    ),
    Metric(
        "ece_debiased",
        "Debiased ECE",
        "scores",
        "ECE less the bias that independent images would have (see Calibration)",
    ),
    Metric("f1_at_half", "F1 at a score of 0.5", "half", "2 TP / (2 TP + FP + FN)"),
    Metric("false_negative_rate", "False negative rate", "group", "FN / (TP + FN)"),
    Metric("calibration", "Calibration gap", "group", "mean score less share of positives of a group"),
    Metric("kappa", "Cohen's kappa", "readings", "agreement of two readings beyond chance"),
    Metric(
        "positive_agreement",
        "Positive agreement",
        "readings",
        "2 a / (2 a + b + c); a: positive in both readings, b and c: in one",
    ),
    Metric(
        "negative_agreement",
        "Negative agreement",
        "readings",
        "2 d / (2 d + b + c); d: negative in both readings, b and c: in one",
    ),
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
