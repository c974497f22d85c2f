"""Test patients set apart: the sealed ones, whom no figure shows, and the gate sets, which decisions take in turn.

Each choice is a hash of the patient id alone, so that new patients never move old ones; the hashes are independent of
each other and of the one that splits.
"""

import hashlib

import numpy as np
import pandas as pd
from numpy.typing import NDArray


def sealed(studies: pd.DataFrame, share: float) -> NDArray[np.bool_]:
    """Which rows are test images of sealed patients, bool [rows].

    Args:
        studies: patient_id and split.
        share: of the test patients that are sealed, on average.
    """
    chosen = _position(studies["patient_id"], "sealed") < share
    return np.asarray(chosen & (studies["split"] == "test").to_numpy())


def unsealed(studies: pd.DataFrame, share: float, *logits: pd.DataFrame) -> tuple[pd.DataFrame, ...]:
    """Studies and tables of logits without the test images of sealed patients.

    Args:
        studies: image_id, patient_id and split.
        share: as for `sealed`.
        logits: tables with image_id; an image that the studies do not have stays.
    """
    hidden = sealed(studies, share)
    ids = studies.loc[hidden, "image_id"]
    return studies[~hidden], *(table[~table["image_id"].isin(ids)] for table in logits)


def sealed_patients(studies: pd.DataFrame, share: float) -> int:
    """How many patients with test images are sealed."""
    return int(studies.loc[sealed(studies, share), "patient_id"].nunique())


def gate_set(patients: "pd.Series[str]", sets: int, turn: int) -> NDArray[np.bool_]:
    """Which rows are of the gate set whose turn it is, bool [rows].

    Args:
        patients: patient id of each row.
        sets: how many sets the patients are shared out to.
        turn: decisions that were taken before.
    """
    number = (_position(patients, "gate") * sets).astype(np.int64)
    return np.asarray(number == turn % sets)


def _position(patients: "pd.Series[str]", purpose: str) -> NDArray[np.float64]:
    """Where each row's patient falls in [0, 1) for a purpose; another personalised hash than `ral.data.splits.methods.position`."""
    codes, ids = pd.factorize(patients)
    digests = [
        hashlib.blake2b(str(name).encode(), digest_size=8, person=purpose.encode()).digest() for name in ids
    ]
    places = np.array([int.from_bytes(digest) / 2**64 for digest in digests], dtype=np.float64)
    return places[codes]
