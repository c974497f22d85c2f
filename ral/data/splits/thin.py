"""Thins the positives of training images to a geometric profile, for experiments on imbalance."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ral.config.data import SplitConfig
from ral.data.splits.hashing import hash_to_unit_interval

Array = NDArray[Any]

# How much worse too few positives of a finding are than too many.
SHORTFALL = 4.0

# Reason in quarantine.parquet.
THINNED = "thinned by split.thin"


def thinned_rows(included: pd.DataFrame, findings: Sequence[str], config: SplitConfig) -> Array:
    """Which images leave the training images by `split.thin`; bool [rows], none if it is off.

    Args:
        included: patient_id, split and the findings; other values than 1 count as not positive.
        findings: the label columns.
        config: how the data is split and thinned.
    """
    leaves = np.zeros(len(included), bool)
    if config.thin.ratio is None or config.thin.ratio == 1:
        return leaves
    training = np.flatnonzero(included["split"] == "train")
    codes, ids = pd.factorize(included["patient_id"].iloc[training])
    order = np.array([hash_to_unit_interval(f"{config.seed}:{name}", b"thin") for name in ids])
    targets = included[list(findings)].to_numpy()[training]
    leaves[training] = ~thin(targets, codes, order[codes], config.thin.ratio)
    return leaves


def profile(positives: Array, ratio: float) -> Array:
    """The largest geometric profile that a data set can be thinned to, int64 [findings].

    The k-th most frequent of K findings gets n · ratio^(−k / (K − 1)) positives, with the largest n for which no
    finding needs more than it has (after IGL-Bench, ICLR 2025).

    Args:
        positives: positive training images of each finding.
        ratio: of the most frequent finding's positives to the rarest one's, at least 1.
    """
    rank = np.argsort(np.argsort(-positives, kind="stable"), kind="stable")
    shape = float(ratio) ** (-rank / max(1, len(positives) - 1))
    most = (positives / shape).min()
    counts: Array = np.maximum(1, np.floor(most * shape + 1e-9)).astype(np.int64)
    return counts


def thin(targets: Array, patients: Array, order: Array, ratio: float) -> Array:
    """Which training images remain when positives are thinned to `profile`; bool [images].

    Whole patients leave, of the finding with the largest relative surplus first, those with few other findings first:
    each one only if the counts come closer to the profile (sum of the absolute logarithms of their ratios, `SHORTFALL`
    times where a finding has too few). Findings that accompany others keep more than their target.

    Args:
        targets: labels of the training images.
        patients: patient of each.
        order: a number per image that is the same for all images of a patient and breaks ties.
        ratio: see `profile`; 1 makes all findings equally frequent.
    """
    ids, first, codes = np.unique(patients, return_index=True, return_inverse=True)
    counts = np.stack([np.bincount(codes, weights=column == 1) for column in targets.T], axis=1).astype(
        np.int64
    )
    left = counts.sum(axis=0)
    target = profile(left, ratio)
    stays = np.ones(len(ids), bool)
    by_order = np.argsort(order[first], kind="stable")
    before = -1
    while before != stays.sum():
        before = stays.sum()
        for finding in np.argsort(-left / target, kind="stable"):
            patients_with = by_order[stays[by_order] & (counts[by_order, finding] > 0)]
            others = counts[patients_with].sum(axis=1) / counts[patients_with, finding]
            for patient in patients_with[np.argsort(others, kind="stable")]:
                if left[finding] <= target[finding]:
                    break
                after = left - counts[patient]
                if after.min() > 0 and _distance(after, target) < _distance(left, target):
                    stays[patient], left = False, after
    kept: Array = stays[codes]
    return kept


def _distance(counts: Array, target: Array) -> float:
    ratios = np.log(counts / target)
    return float(np.where(ratios < 0, -SHORTFALL * ratios, ratios).sum())
