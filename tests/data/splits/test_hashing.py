"""The hash behind splits, sealed patients and gate sets: its values are pinned, since accepted splits depend
on them.
"""

import numpy as np
import pandas as pd
import pytest

from ral.config.data import SplitConfig
from ral.data.splits.hashing import hash_to_unit_interval
from ral.data.splits.holdout import gate_set, sealed
from ral.data.splits.methods import patient_hash, split_by_hash

# Patient id -> value personalized "sealed", "gate"; value of the split with seed 0, 1234.
PINNED = {
    "7": (0.2208146325447259, 0.025443343461871312, 0.09408258665251581, 0.3177637796541312),
    "phantom-12": (0.18369949044516498, 0.12524766397788842, 0.2702462474010601, 0.5446562902262708),
    "Ärztin 3": (0.5715261974974444, 0.5266851931729049, 0.956094422969261, 0.09409338747995381),
    "": (0.7714849673307691, 0.8006103632026486, 0.2506975831573811, 0.3430689788705289),
}


@pytest.mark.parametrize("patient_id", PINNED)
def test_values_are_pinned(patient_id: str) -> None:
    for_sealed, for_gate, seed_0, seed_1234 = PINNED[patient_id]
    assert hash_to_unit_interval(patient_id, person=b"sealed") == for_sealed
    assert hash_to_unit_interval(patient_id, person=b"gate") == for_gate
    assert patient_hash(patient_id, 0) == seed_0
    assert patient_hash(patient_id, 1234) == seed_1234


def test_users_of_the_hash_apply_its_values() -> None:
    patients = pd.Series(list(PINNED))
    studies = pd.DataFrame({"patient_id": patients, "split": "test"})
    for index, (for_sealed, for_gate, seed_0, _) in enumerate(PINNED.values()):
        # On both sides of the value.
        assert not sealed(studies, for_sealed)[index]
        assert sealed(studies, float(np.nextafter(for_sealed, 1)))[index]
        assert gate_set(patients, 1000, int(for_gate * 1000))[index]
        config = SplitConfig.model_construct(method="hash", val=0.0, test=seed_0, seed=0)
        assert split_by_hash(patients, config)[index] == "train"
        config = SplitConfig.model_construct(
            method="hash", val=0.0, test=float(np.nextafter(seed_0, 1)), seed=0
        )
        assert split_by_hash(patients, config)[index] == "test"
