"""A patient is in one split, for ever; what cannot be learned or tested is refused."""

import numpy as np
import pandas as pd
import pytest

from ral.config.data import SplitConfig
from ral.data.dataset_info import LabelCounts
from ral.data.splits.methods import (
    check_split,
    keep_old_patients,
    low_support_warnings,
    patient_hash,
    split_by_hash,
    split_official,
    split_stratified,
)
from ral.data.splits.stratify import stratify
from ral.errors import UserError

CONFIG = SplitConfig(method="hash", val=0.1, test=0.2, seed=0)


def images(patients: int, each: int = 3) -> pd.DataFrame:
    ids = np.repeat([f"p{number}" for number in range(patients)], each)
    return pd.DataFrame({"image_id": [f"{index}.png" for index in range(len(ids))], "patient_id": ids})


def test_hash_keeps_patients_together_and_shares() -> None:
    studies = images(4000)
    studies["split"] = split_by_hash(studies["patient_id"], CONFIG)
    assert (studies.groupby("patient_id")["split"].nunique() == 1).all()
    shares = studies["split"].value_counts(normalize=True)
    assert shares["test"] == pytest.approx(0.2, abs=0.02)
    assert shares["val"] == pytest.approx(0.1, abs=0.02)


def test_new_patients_move_nobody() -> None:
    old = split_by_hash(images(100)["patient_id"], CONFIG)
    new = split_by_hash(images(500)["patient_id"], CONFIG)
    assert (new[: len(old)] == old).all()


def test_position_is_pinned() -> None:
    # Stored splits depend on this function: it must never change.
    assert patient_hash("1", 0) == pytest.approx(0.9459165357046845, abs=1e-15)
    assert patient_hash("1", 1) != patient_hash("1", 0)


def test_seed_changes_the_split() -> None:
    patients = images(300)["patient_id"]
    other = CONFIG.model_copy(update={"seed": 1})
    assert (split_by_hash(patients, CONFIG) != split_by_hash(patients, other)).any()


def lists(studies: pd.DataFrame, train: set[str], test: set[str]) -> pd.Series:
    ids = studies["image_id"]
    official = pd.Series(None, index=studies.index, dtype="str")
    official[ids.isin(train)] = "train"
    official[ids.isin(test)] = "test"
    return official


def test_lists_are_followed_and_validation_cut_by_patient() -> None:
    studies = images(300)
    test = set(studies["image_id"][studies["patient_id"].isin({f"p{n}" for n in range(60)})])
    train = set(studies["image_id"]) - test
    studies["split"] = split_official(studies, lists(studies, train, test), CONFIG)
    assert set(studies["image_id"][studies["split"] == "test"]) == test
    assert (studies.groupby("patient_id")["split"].nunique() == 1).all()
    assert set(studies["split"]) == {"train", "val", "test"}


def test_image_on_no_list_and_patient_on_both() -> None:
    studies = images(2)
    ids = studies["image_id"].tolist()
    with pytest.raises(UserError, match=r"1 images are on no official list. The first: 5\.png"):
        split_official(studies, lists(studies, set(ids[:3]), set(ids[3:5])), CONFIG)
    with pytest.raises(UserError, match="Patient p1 has images in more than one official split"):
        split_official(studies, lists(studies, set(ids[:4]), set(ids[4:])), CONFIG)


def labelled(splits: list[str], labels: list[float], patients: list[str] | None = None) -> pd.DataFrame:
    return pd.DataFrame(
        {"patient_id": patients or [f"p{n}" for n in range(len(splits))], "split": splits, "Mass": labels}
    )


def test_check_accepts_a_good_split_and_refuses_others() -> None:
    good = labelled(["train", "train", "val", "test"], [1, 0, 0, 0])
    check_split(good, ("Mass",), CONFIG)
    with pytest.raises(UserError, match="Patient a is in two splits"):
        check_split(good.assign(patient_id=["a", "b", "c", "a"]), ("Mass",), CONFIG)
    with pytest.raises(UserError, match=r"The val split is empty.*4 images of 1 patient"):
        check_split(labelled(["train"] * 4, [1, 0, 0, 0], ["a"] * 4), ("Mass",), CONFIG)
    with pytest.raises(
        UserError, match=r"Mass has no positive image among the 2 training images.*data\.findings"
    ):
        check_split(good.assign(Mass=[0, 0, 1, 1]), ("Mass",), CONFIG)
    with pytest.raises(UserError, match="Mass has no negative"):
        check_split(good.assign(Mass=[1, np.nan, 1, 1]), ("Mass",), CONFIG)


def test_all_findings_that_cannot_be_learned_are_named_at_once() -> None:
    table = labelled(["train", "train", "val", "test"], [1, 0, 0, 0]).assign(
        Hernia=[0, 0, 1, 0], Edema=[0, 1, 0, 1], Nodule=[1, 1, 1, 1]
    )
    with pytest.raises(UserError) as caught:
        check_split(table, ("Mass", "Hernia", "Edema", "Nodule"), CONFIG)
    message = str(caught.value)
    assert "Hernia has no positive image" in message
    assert "Nodule has no negative image" in message
    assert "set data.findings to [Mass, Edema]" in message


def test_official_validation_is_kept_as_it_is() -> None:
    studies = images(6, each=1)
    official = pd.Series(["train", "train", "train", "val", "test", "test"])
    assert split_official(studies, official, CONFIG).tolist() == official.tolist()


def test_finding_that_is_only_in_the_test_split_says_so() -> None:
    with pytest.raises(UserError, match=r"Mass has no positive image .* \(2 are in validation and test\)"):
        check_split(labelled(["train", "train", "val", "test"], [0, 0, 1, 1]), ("Mass",), CONFIG)


STRATIFIED = SplitConfig(method="stratified", val=0.1, test=0.2, seed=0)
FINDINGS = [f"f{number}" for number in range(12)]


def population(patients: int, seed: int = 0) -> pd.DataFrame:
    """Patients of one to some images with findings from 30 % down to 0.1 %."""
    rng = np.random.default_rng(seed)
    owner = np.repeat(np.arange(patients), rng.geometric(0.3, patients))
    labels = (rng.random((len(owner), len(FINDINGS))) < np.geomspace(0.3, 0.001, len(FINDINGS))).astype(
        "float32"
    )
    return pd.DataFrame(labels, columns=FINDINGS).assign(patient_id=[f"p{number:05}" for number in owner])


def test_stratified_spreads_every_finding() -> None:
    studies = population(4000)
    studies["split"] = split_stratified(studies, FINDINGS, STRATIFIED)
    assert (studies.groupby("patient_id")["split"].nunique() == 1).all()
    shares = studies["split"].value_counts(normalize=True)
    assert shares["val"] == pytest.approx(0.1, abs=0.001)
    assert shares["test"] == pytest.approx(0.2, abs=0.001)
    total = studies[FINDINGS].sum()
    hashed = split_by_hash(studies["patient_id"], CONFIG)
    for name, share in (("val", 0.1), ("test", 0.2)):
        counts = studies.loc[studies["split"] == name, FINDINGS].sum()
        assert (counts - share * total).abs().max() <= 2  # images; whole patients cannot be cut finer
        assert ((counts - share * total) ** 2).sum() < (
            (studies[hashed == name][FINDINGS].sum() - share * total) ** 2
        ).sum()


def test_stratified_is_that_of_the_paper_on_its_own_ground() -> None:
    # Patients of one image and one finding each: exact shares of every finding.
    positives = np.repeat(np.eye(3, dtype=int), [100, 20, 10], axis=0)
    split = stratify(positives, np.ones(130, int), np.arange(130), (0.7, 0.1, 0.2), np.full(130, -1))
    for finding, count in enumerate((100, 20, 10)):
        assert np.bincount(split[positives[:, finding] == 1]).tolist() == [
            0.7 * count,
            0.1 * count,
            0.2 * count,
        ]


def test_stratified_does_not_depend_on_the_order_of_rows_and_has_a_seed() -> None:
    studies = population(500)
    split = split_stratified(studies, FINDINGS, STRATIFIED)
    shuffled = studies.sample(frac=1, random_state=3)
    assert (split_stratified(shuffled, FINDINGS, STRATIFIED).sort_index() == split).all()
    other = STRATIFIED.model_copy(update={"seed": 1})
    assert (split_stratified(studies, FINDINGS, other) != split).any()


def test_growth_moves_nobody_and_new_patients_even_things_out() -> None:
    studies = population(2000)
    old = studies[studies["patient_id"] < "p01000"]
    first = split_stratified(old, FINDINGS, STRATIFIED)
    before = pd.Series(first.to_numpy(), index=old["patient_id"]).groupby(level=0).first()
    grown = split_stratified(studies, FINDINGS, STRATIFIED, before)
    assert (grown[old.index] == first).all()
    keep_old_patients(studies, grown, before)
    total = studies[FINDINGS].sum()
    assert (studies.loc[grown == "test", FINDINGS].sum() - 0.2 * total).abs().max() <= 2
    assert set(grown[studies["patient_id"] >= "p01000"]) == {"train", "val", "test"}


def test_patient_that_would_move_is_an_error() -> None:
    studies = images(100)
    split = split_by_hash(studies["patient_id"], CONFIG)
    before = pd.Series(split.to_numpy(), index=studies["patient_id"]).groupby(level=0).first()
    keep_old_patients(studies, split, before)
    keep_old_patients(studies, split, None)
    other = split_by_hash(studies["patient_id"], CONFIG.model_copy(update={"test": 0.4}))
    with pytest.raises(
        UserError, match=r"patients would change their split.* from (train|val) to test.*baseline"
    ):
        keep_old_patients(studies, other, before)


def test_few_positives_are_named() -> None:
    counts = {
        name: LabelCounts(images=99, positives={"Mass": positives, "Edema": 5}, negatives={}, unknown={})
        for name, positives in (("val", 4), ("test", 9))
    }
    assert low_support_warnings(counts) == [
        "fewer than 5 positive images in val: Mass 4. Their metrics will be unreliable."
    ]
