"""Sealed patients and gate sets: chosen by id alone and independent of each other."""

import numpy as np
import pandas as pd

from ral.data.splits.holdout import gate_set, sealed
from ral.data.splits.methods import patient_hash


def patients(number: int) -> pd.DataFrame:
    ids = [f"p{n}" for n in range(number)]
    return pd.DataFrame({"image_id": ids, "patient_id": ids, "split": "test"})


def test_new_patients_never_move_old_ones() -> None:
    few, many = patients(1000), patients(3000)
    assert (sealed(many, 0.3)[:1000] == sealed(few, 0.3)).all()
    assert (gate_set(many["patient_id"], 3, 4)[:1000] == gate_set(few["patient_id"], 3, 4)).all()
    # A larger share seals more, and unseals nobody.
    assert (sealed(many, 0.4) >= sealed(many, 0.3)).all()
    assert not sealed(many, 0.0).any()


def test_sets_share_out_all_patients_and_come_round() -> None:
    ids = patients(3000)["patient_id"]
    sets = [gate_set(ids, 3, turn) for turn in range(6)]
    assert (np.sum(sets[:3], axis=0) == 1).all()
    for turn in range(3):
        assert (sets[turn] == sets[turn + 3]).all()
        assert 0.28 < sets[turn].mean() < 0.39


def test_sealing_splitting_and_gate_sets_are_independent() -> None:
    table = patients(20_000)
    hidden, first = sealed(table, 0.5), gate_set(table["patient_id"], 2, 0)
    low = np.array([patient_hash(name, 0) < 0.5 for name in table["patient_id"]])
    for one, other in ((hidden, first), (hidden, low), (first, low)):
        assert abs(np.corrcoef(one, other)[0, 1]) < 0.03
