"""Split methods: assign patients to train, val and test; no patient is ever in two splits."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from ral.config.data import SplitConfig
from ral.data.dataset_info import ClassCounts
from ral.data.splits.hashing import hash_to_unit_interval
from ral.data.splits.stratify import stratify
from ral.errors import UserError

SPLITS = ("train", "val", "test")

# With fewer positive images of a finding in validation or test, its metrics are unreliable.
MIN_POSITIVES = 5


def patient_hash(patient_id: str, seed: int) -> float:
    """Map a patient to [0, 1) by the id and the seed alone, so that new patients never move old ones."""
    return hash_to_unit_interval(f"{seed}:{patient_id}")


def split_by_hash(patients: pd.Series, config: SplitConfig) -> pd.Series:
    """Split of each row by `patient_hash`: test below `test`, then val, then train."""

    codes, ids = pd.factorize(patients)
    hashes = np.array([patient_hash(patient, config.seed) for patient in ids.to_numpy(object)])
    split = np.where(hashes < config.test, 2, np.where(hashes < config.test + config.val, 1, 0))
    return pd.Series(pd.array(list(SPLITS), dtype="str").take(split[codes]), index=patients.index)


def split_official(studies: pd.DataFrame, official: pd.Series, config: SplitConfig) -> pd.Series:
    """Split of each row by the official lists of the data set.

    If they have no validation images, validation patients are taken from the training list by patient hash.

    Args:
        studies: image_id and patient_id.
        official: train, val or test for each row; null where an image is on no list.

    Raises:
        UserError: an image is on no list, or a patient has images on two.
    """
    unlisted = studies["image_id"][official.isna()]
    if len(unlisted):
        raise UserError(
            f"{len(unlisted)} images are on no official list. The first: {unlisted.iloc[0]}. "
            "Complete the lists, or set split.method to hash."
        )
    split_counts = official.groupby(studies["patient_id"]).nunique()
    if (split_counts > 1).any():
        raise UserError(
            f"Patient {split_counts.index[split_counts > 1][0]} has images in more than one official split: test data "
            "would leak into training. Correct the lists, or set split.method to hash."
        )
    if (official == "val").any():
        return official
    rest = studies["patient_id"].map(
        {
            p: "val" if patient_hash(p, config.seed) < config.val else "train"
            for p in studies["patient_id"].unique()
        }
    )
    return rest.mask(official == "test", "test")


def split_stratified(
    studies: pd.DataFrame, findings: Sequence[str], config: SplitConfig, before: pd.Series | None = None
) -> pd.Series:
    """Split of each row by iterative stratification over patients (`ral.data.splits.stratify`).

    It depends on ids, labels and seed, not on the order of the rows. Patients in `before` keep their split.

    Args:
        studies: patient_id and the label columns.
        findings: the findings to balance; unknown labels count as not positive.
        before: accepted split by patient id.
    """
    codes, patients = pd.factorize(studies["patient_id"], sort=True)
    images = np.bincount(codes)
    positives = np.stack(
        [np.bincount(codes, weights=(studies[finding] == 1)).astype(np.int64) for finding in findings], axis=1
    )
    order = np.argsort(
        np.argsort([patient_hash(patient, config.seed) for patient in patients], kind="stable")
    )
    given = np.full(len(patients), -1)
    if before is not None:
        number = {name: index for index, name in enumerate(SPLITS)}
        given = pd.Series(patients).map(before).map(number).fillna(-1).to_numpy(np.int64)
    shares = (1 - config.val - config.test, config.val, config.test)
    split = stratify(positives, images, order, shares, given)
    return pd.Series(np.array(SPLITS, dtype=object)[split[codes]], index=studies.index, dtype="str")


def keep_old_patients(studies: pd.DataFrame, split: pd.Series, before: pd.Series | None) -> None:
    """Check that every patient of the accepted split keeps their split.

    Args:
        studies: patient_id.
        split: of each row.
        before: accepted split by patient id, or None the first time.

    Raises:
        UserError: a patient would move.
    """
    if before is None:
        return
    old = studies["patient_id"].map(before)
    moved = old.notna() & (old != split)
    if moved.any():
        row = int(np.flatnonzero(moved)[0])
        count = studies.loc[moved, "patient_id"].nunique()
        raise UserError(
            f"{count} patients would change their split. The first: {studies['patient_id'].iloc[row]}, from "
            f"{old.iloc[row]} to {split.iloc[row]}: test data would leak into training. Restore the split "
            "parameters of the accepted split, or delete baseline/split.parquet to start over."
        )


def check_split(studies: pd.DataFrame, findings: tuple[str, ...], config: SplitConfig) -> None:
    """Check a split before anything is trained on it.

    Args:
        studies: patient_id, split and one column per finding.
        findings: columns to learn.
        config: how the split was made.

    Raises:
        UserError: a patient is in two splits, a split is empty, a finding cannot be learned.
    """
    split_counts = studies.groupby("patient_id")["split"].nunique()
    if (split_counts > 1).any():
        raise UserError(
            f"Patient {split_counts.index[split_counts > 1][0]} is in two splits. Do not use this split."
        )
    patients = studies["patient_id"].nunique()
    for name in SPLITS:
        if not (studies["split"] == name).any():
            raise UserError(
                f"The {name} split is empty: the data has {len(studies)} images of {patients} patient(s), and a "
                "patient is never in two splits. Provide more patients, or change split.val, split.test, "
                "split.seed or split.method."
            )
    train = studies[studies["split"] == "train"]
    problems, learnable = [], []
    for finding in findings:
        positives, negatives = (train[finding] == 1).sum(), (train[finding] == 0).sum()
        if positives and negatives:
            learnable.append(finding)
            continue
        kind = "positive" if not positives else "negative"
        others = int((studies[finding] == (1 if kind == "positive" else 0)).sum())
        elsewhere = f" ({others} are in validation and test)" if others else ""
        problems.append(f"{finding} has no {kind} image among the {len(train)} training images{elsewhere}")
    if problems:
        spread = "" if config.method == "stratified" else ", or set split.method to stratified"
        others_only = (
            f"set data.findings to [{', '.join(learnable)}]"
            if learnable
            else "list other findings in data.findings"
        )
        raise UserError(
            f"{'; '.join(problems)}. A finding is learned from positive and negative images: provide more data, or "
            f"{others_only}{spread}."
        )


def low_support_warnings(counts: ClassCounts, few: int = MIN_POSITIVES) -> list[str]:
    """One line per split in which findings have fewer than `few` positive images, from class_counts.json."""
    lines = []
    for name in ("val", "test"):
        rare = {finding: number for finding, number in counts[name].positives.items() if number < few}
        if rare:
            shown = ", ".join(f"{finding} {number}" for finding, number in rare.items())
            lines.append(
                f"fewer than {few} positive images in {name}: {shown}. Their metrics will be unreliable."
            )
    return lines
