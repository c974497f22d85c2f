"""Training labels that look wrong, for a person to check. Nothing is changed by them.

A label is suspicious if the features of other patients predict the other value as confidently as they predict it for
the images that have it (confident learning, Northcutt et al., JAIR 2021, one finding at a time), or if a positive
image is an outlier among the positives of its finding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from ral.config.explain import ReviewConfig
from ral.data.dataset import Dataset
from ral.explain.contents import SuspiciousLabel
from ral.explain.geometry import image_features
from ral.explain.outliers import OUTLIER, local_outlier_factor
from ral.models import Network
from ral.models.info import ModelInfo

Array = NDArray[Any]

# Weight of the penalty ½ |w|² beside the mean loss; features are standardised.
L2 = 0.01
DECIMALS = 6


@dataclass(frozen=True)
class Suspicion:
    """Of the labels of one finding; NaN where the label is unknown or nothing could be estimated."""

    probability: Array
    """Probability of the finding, from a classifier that saw no image of the patient [images]."""
    confidence: Array
    """Probability of the other value, divided by its mean over the images with that value [images]."""
    predicted_otherwise: Array
    """Whether the other value is predicted with the usual confidence; where the label's own value is too, whether it
    is the less probable of the two [images]."""
    outlier_factor: Array
    """Local outlier factor among the positives; NaN for negatives [images]."""

    @property
    def is_outlier(self) -> Array:
        """Whether a positive is an outlier [images]."""
        outlier: Array = np.nan_to_num(self.outlier_factor) > OUTLIER
        return outlier


def review(
    network: Network, info: ModelInfo, dataset: Dataset, config: ReviewConfig
) -> tuple[SuspiciousLabel, ...]:
    """The most suspicious training labels of each finding.

    Args:
        network: in eval mode, on the device of the computation.
        info: content of model.json.
        dataset: the prepared data; only training images are used.
        config: number of labels, folds and seed.

    Raises:
        NoMapError: the network has no features to analyse.
    """
    rows = dataset.rows("train")
    features = image_features(network, info, dataset, rows)
    return most_suspicious(dataset.studies.iloc[rows], dataset.findings, features, config)


def most_suspicious(
    studies: pd.DataFrame, findings: Sequence[str], features: Array, config: ReviewConfig
) -> tuple[SuspiciousLabel, ...]:
    """Of each finding, first the labels that are predicted otherwise, positives and negatives in turn and the most
    confident of each first; then outliers.

    Args:
        studies: training images, with image_id, patient_id and a column per finding (1, 0, NaN).
        findings: names of the findings.
        features: float64 [images, width].
        config: number of labels, folds and seed.
    """
    folds = patient_folds(studies["patient_id"].to_numpy(), config.folds, config.seed)
    image_ids = studies["image_id"].tolist()
    sd = features.std(axis=0)
    standardised = (features - features.mean(axis=0)) / np.where(sd > 0, sd, 1.0)
    found = []
    for finding in findings:
        target = studies[finding].to_numpy(np.float64)
        labels = suspicion(standardised, target, folds, config.neighbours)
        by_confidence = rank_within_value(labels.confidence, target)
        by_outlier = -np.nan_to_num(labels.outlier_factor)
        rank = np.where(labels.predicted_otherwise, by_confidence, by_outlier)
        order = np.lexsort((rank, ~labels.predicted_otherwise))
        listed = [row for row in order if labels.predicted_otherwise[row] or labels.is_outlier[row]]
        found += [
            _entry(finding, image_ids[row], target[row], labels, row) for row in listed[: config.labels]
        ]
    return tuple(found)


def patient_folds(patients: Array, folds: int, seed: int) -> Array:
    """Number of the fold of each image, int64 [images]; a patient is in one fold."""
    names, index = np.unique(patients, return_inverse=True)
    fold: Array = (np.random.default_rng(seed).permutation(len(names)) % folds)[index]
    return fold


def suspicion(features: Array, target: Array, folds: Array, neighbours: int) -> Suspicion:
    """How suspicious the labels of one finding are.

    Args:
        features: standardised [images, width].
        target: 1, 0 or NaN [images].
        folds: number of the fold [images].
        neighbours: of the local outlier factor.
    """
    probability = out_of_fold(features, target, folds)
    factor = np.full(len(target), np.nan)
    positive = target == 1
    factor[positive] = local_outlier_factor(features[positive], neighbours)
    return Suspicion(probability, *confident_other(probability, target), factor)


def confident_other(probability: Array, target: Array) -> tuple[Array, Array]:
    """How confidently the other value is predicted than that of the label, and whether that makes the label
    suspicious: membership in an off-diagonal cell of the confident joint of Northcutt et al.

    Args:
        probability: of the finding, from a classifier that saw no image of the patient; NaN where unknown [images].
        target: 1, 0 or NaN [images].

    Returns:
        `Suspicion.confidence` and `Suspicion.predicted_otherwise`.
    """
    positive, negative = ((target == value) & np.isfinite(probability) for value in (1, 0))
    if not (positive.any() and negative.any()):
        return np.full(len(target), np.nan), np.zeros(len(target), bool)
    present = probability / probability[positive].mean()
    absent = (1 - probability) / (1 - probability[negative].mean())
    other = np.where(positive, absent, np.where(negative, present, np.nan))
    own = np.where(positive, present, absent)
    less_probable = np.where(positive, probability < 0.5, probability > 0.5)
    return other, (np.nan_to_num(other) >= 1) & ((own < 1) | less_probable)


def out_of_fold(features: Array, target: Array, folds: Array) -> Array:
    """Probability of the finding for each image, by logistic regression on the known labels of the other folds;
    NaN where these have one value only.
    """
    probability = np.full(len(target), np.nan)
    for fold in np.unique(folds):
        train = ~np.isnan(target) & (folds != fold)
        if len(np.unique(target[train])) < 2:
            continue
        model = LogisticRegression(C=1 / (L2 * train.sum()), max_iter=1000)
        model.fit(features[train], target[train])
        rows = folds == fold
        probability[rows] = expit(features[rows] @ model.coef_[0] + model.intercept_[0])
    return probability


def rank_within_value(confidence: Array, target: Array) -> Array:
    """Rank of each label among those of its value, the highest confidence first [images]. The confidences of positives
    and of negatives have different denominators: on one scale, one kind would fill the list.
    """
    rank = np.zeros(len(target), np.int64)
    for value in (0, 1):
        own = np.flatnonzero(target == value)
        rank[own[np.argsort(-np.nan_to_num(confidence[own]), kind="stable")]] = np.arange(len(own))
    return rank


def to_table(labels: Sequence[SuspiciousLabel]) -> pd.DataFrame:
    """label_review.csv: one row per suspicious label; reasons separated by a semicolon."""
    rows = [{**label.model_dump(), "reasons": "; ".join(label.reasons)} for label in labels]
    return pd.DataFrame(rows, columns=list(SuspiciousLabel.model_fields))


def _entry(finding: str, image_id: str, value: float, labels: Suspicion, row: int) -> SuspiciousLabel:
    probability, factor = labels.probability[row], labels.outlier_factor[row]
    reasons = []
    if labels.predicted_otherwise[row]:
        reasons.append("predicted otherwise")
    if labels.is_outlier[row]:
        reasons.append("outlier")
    return SuspiciousLabel(
        finding=finding,
        image_id=image_id,
        label=int(value),
        reasons=tuple(reasons),
        probability=round(float(probability), DECIMALS) if np.isfinite(probability) else None,
        outlier_factor=round(float(factor), DECIMALS) if np.isfinite(factor) else None,
    )
