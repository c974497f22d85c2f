"""A patient is in one split, for ever; what cannot be learned or tested is refused."""

import numpy as np
import pandas as pd
import pytest

from ral.config.data import SplitConfig
from ral.data.split import check_split, position, split_by_hash, split_by_lists
from ral.errors import UserError

CONFIG = SplitConfig(method="hash", val=0.1, test=0.2, seed=0)


def films(patients: int, each: int = 3) -> pd.DataFrame:
    ids = np.repeat([f"p{number}" for number in range(patients)], each)
    return pd.DataFrame({"image_id": [f"{index}.png" for index in range(len(ids))], "patient_id": ids})


def test_hash_keeps_patients_together_and_shares() -> None:
    studies = films(4000)
    studies["split"] = split_by_hash(studies["patient_id"], CONFIG)
    assert (studies.groupby("patient_id")["split"].nunique() == 1).all()
    shares = studies["split"].value_counts(normalize=True)
    assert shares["test"] == pytest.approx(0.2, abs=0.02)
    assert shares["val"] == pytest.approx(0.1, abs=0.02)


def test_new_patients_move_nobody() -> None:
    old = split_by_hash(films(100)["patient_id"], CONFIG)
    new = split_by_hash(films(500)["patient_id"], CONFIG)
    assert (new[: len(old)] == old).all()


def test_position_is_pinned() -> None:
    # Stored splits depend on this function: it must never change.
    assert position("1", 0) == pytest.approx(0.9459165357046845, abs=1e-15)
    assert position("1", 1) != position("1", 0)


def test_seed_changes_the_split() -> None:
    patients = films(300)["patient_id"]
    other = CONFIG.model_copy(update={"seed": 1})
    assert (split_by_hash(patients, CONFIG) != split_by_hash(patients, other)).any()


def test_lists_are_followed_and_validation_cut_by_patient() -> None:
    studies = films(300)
    test = set(studies["image_id"][studies["patient_id"].isin({f"p{n}" for n in range(60)})])
    train = set(studies["image_id"]) - test
    studies["split"] = split_by_lists(studies, train, test, CONFIG)
    assert set(studies["image_id"][studies["split"] == "test"]) == test
    assert (studies.groupby("patient_id")["split"].nunique() == 1).all()
    assert set(studies["split"]) == {"train", "val", "test"}


def test_film_on_no_list_and_patient_on_both() -> None:
    studies = films(2)
    ids = studies["image_id"].tolist()
    with pytest.raises(UserError, match=r"1 films are on neither official list, the first is 5\.png"):
        split_by_lists(studies, set(ids[:3]), set(ids[3:5]), CONFIG)
    with pytest.raises(UserError, match="Patient p1 has films on both"):
        split_by_lists(studies, set(ids[:4]), set(ids[4:]), CONFIG)


def labelled(splits: list[str], labels: list[float], patients: list[str] | None = None) -> pd.DataFrame:
    return pd.DataFrame(
        {"patient_id": patients or [f"p{n}" for n in range(len(splits))], "split": splits, "Mass": labels}
    )


def test_check_accepts_a_good_split_and_refuses_others() -> None:
    good = labelled(["train", "train", "val", "test"], [1, 0, 0, 0])
    check_split(good, ("Mass",))
    with pytest.raises(UserError, match="Patient a is in two splits"):
        check_split(good.assign(patient_id=["a", "b", "c", "a"]), ("Mass",))
    with pytest.raises(UserError, match=r"The val split is empty.*4 films of 1 patient"):
        check_split(labelled(["train"] * 4, [1, 0, 0, 0], ["a"] * 4), ("Mass",))
    with pytest.raises(
        UserError, match=r"Mass has no positive film among the 2 training films.*data\.findings"
    ):
        check_split(good.assign(Mass=[0, 0, 1, 1]), ("Mass",))
    with pytest.raises(UserError, match="Mass has no negative"):
        check_split(good.assign(Mass=[1, np.nan, 1, 1]), ("Mass",))
