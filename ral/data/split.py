"""Shares patients out to train, val and test; no patient is ever in two of them."""

import hashlib

import pandas as pd

from ral.config.data import SplitConfig
from ral.errors import UserError

SPLITS = ("train", "val", "test")


def position(patient_id: str, seed: int) -> float:
    """Where a patient falls in [0, 1): a hash of the id alone, so that new patients never move old ones."""
    digest = hashlib.blake2b(f"{seed}:{patient_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64


def split_by_hash(patients: pd.Series, config: SplitConfig) -> pd.Series:
    """Split of each row by its patient's `position`: test below `test`, then val, then train."""

    def place(patient_id: str) -> str:
        where = position(patient_id, config.seed)
        if where < config.test:
            return "test"
        return "val" if where < config.test + config.val else "train"

    return patients.map({patient: place(patient) for patient in patients.unique()})


def split_by_lists(studies: pd.DataFrame, train: set[str], test: set[str], config: SplitConfig) -> pd.Series:
    """Split of each row by the official lists of image ids; validation is cut from the training list by patient.

    Raises:
        UserError: a film is on neither list, or a patient has films on both.
    """
    ids = studies["image_id"]
    in_test = ids.isin(test)
    neither = ids[~in_test & ~ids.isin(train)]
    if len(neither):
        raise UserError(
            f"{len(neither)} films are on neither official list, the first is {neither.iloc[0]}. "
            "Complete the lists, or set split.method to hash."
        )
    sides = in_test.groupby(studies["patient_id"]).nunique()
    if (sides > 1).any():
        raise UserError(
            f"Patient {sides.index[sides > 1][0]} has films on both official lists, so that the test would "
            "leak. Correct the lists, or set split.method to hash."
        )
    rest = studies["patient_id"].map(
        {
            p: "val" if position(p, config.seed) < config.val else "train"
            for p in studies["patient_id"].unique()
        }
    )
    return rest.mask(in_test, "test")


def check_split(studies: pd.DataFrame, findings: tuple[str, ...]) -> None:
    """Check a split before anything is trained on it.

    Args:
        studies: patient_id, split and one column per finding.
        findings: columns that are to be learned.

    Raises:
        UserError: a patient is in two splits, a split is empty, a finding cannot be learned.
    """
    apart = studies.groupby("patient_id")["split"].nunique()
    if (apart > 1).any():
        raise UserError(f"Patient {apart.index[apart > 1][0]} is in two splits. This split must not be used.")
    patients = studies["patient_id"].nunique()
    for name in SPLITS:
        if not (studies["split"] == name).any():
            raise UserError(
                f"The {name} split is empty: the data has {len(studies)} films of {patients} patient(s), and a "
                "patient is never shared between splits. Give more patients, or change split.val, split.test, "
                "split.seed or split.method."
            )
    train = studies[studies["split"] == "train"]
    for finding in findings:
        positives, negatives = (train[finding] == 1).sum(), (train[finding] == 0).sum()
        if not positives or not negatives:
            kind = "positive" if not positives else "negative"
            raise UserError(
                f"{finding} has no {kind} film among the {len(train)} training films, so it cannot be learned. "
                "Give more data, or list the other findings in data.findings."
            )
