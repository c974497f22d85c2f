"""Held-out test patients: sealed patients, who enter no metric, and gate sets, which release decisions use in turn.

Each choice depends only on a hash of the patient id, so new patients never move old ones. The hashes are independent of
each other and of the hash that splits the patients.
"""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ral.data.splits.hashing import hash_to_unit_interval


def sealed(studies: pd.DataFrame, share: float) -> NDArray[np.bool_]:
    """Which rows are test images of sealed patients, bool [rows].

    Args:
        studies: patient_id and split.
        share: expected share of the test patients that are sealed.
    """
    chosen = _patient_hashes(studies["patient_id"], "sealed") < share
    return np.asarray(chosen & (studies["split"] == "test").to_numpy())


def unsealed(studies: pd.DataFrame, share: float, *logits: pd.DataFrame) -> tuple[pd.DataFrame, ...]:
    """Remove the test images of sealed patients from the studies and the logits.

    Args:
        studies: image_id, patient_id and split.
        share: as for `sealed`.
        logits: tables with image_id; images that are not in the studies are kept.
    """
    hidden = sealed(studies, share)
    ids = studies.loc[hidden, "image_id"]
    return studies[~hidden], *(table[~table["image_id"].isin(ids)] for table in logits)


def sealed_patients(studies: pd.DataFrame, share: float) -> int:
    """How many patients with test images are sealed."""
    return int(studies.loc[sealed(studies, share), "patient_id"].nunique())


def gate_set(patients: "pd.Series[str]", sets: int, turn: int) -> NDArray[np.bool_]:
    """Which rows belong to the gate set of this decision, bool [rows].

    Args:
        patients: patient id of each row.
        sets: number of sets that the patients are divided into.
        turn: number of earlier decisions.
    """
    number = (_patient_hashes(patients, "gate") * sets).astype(np.int64)
    return np.asarray(number == turn % sets)


def _patient_hashes(patients: "pd.Series[str]", purpose: str) -> NDArray[np.float64]:
    """Map each row's patient to [0, 1), independently for each purpose and of
    `ral.data.splits.methods.patient_hash`.
    """
    codes, ids = pd.factorize(patients)
    person = purpose.encode()
    hashes = np.array([hash_to_unit_interval(str(name), person) for name in ids], dtype=np.float64)
    return hashes[codes]
