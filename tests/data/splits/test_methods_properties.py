"""Properties of the splits, for any patients, labels, shares and seeds."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ral.config.data import SplitConfig
from ral.data.splits.holdout import gate_set, sealed
from ral.data.splits.methods import SPLITS, split_by_hash, split_official, split_stratified

FINDINGS = ["Mass", "Edema", "Hernia"]


@st.composite
def populations(draw: st.DrawFn) -> pd.DataFrame:
    """Patients of one to nine images in random order, with findings from frequent to rare, some unknown."""
    patients = draw(st.integers(1, 60))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    owner = rng.permutation(np.repeat(np.arange(patients), rng.integers(1, 10, patients)))
    prefix = draw(st.text(max_size=5))
    labels = (rng.random((len(owner), 3)) < [0.5, 0.1, 0.02]).astype(np.float32)
    labels[rng.random(labels.shape) < 0.1] = np.nan
    studies = pd.DataFrame(labels, columns=FINDINGS)
    return studies.assign(
        image_id=[f"{number}.png" for number in range(len(owner))],
        patient_id=[f"{prefix}{number}" for number in owner],
    )


@st.composite
def configs(draw: st.DrawFn, method: str) -> SplitConfig:
    val, test = draw(st.floats(0.01, 0.44)), draw(st.floats(0.01, 0.44))
    return SplitConfig.model_validate(
        {"method": method, "val": val, "test": test, "seed": draw(st.integers(0, 2**31 - 1))}
    )


def assign(studies: pd.DataFrame, config: SplitConfig, before: "pd.Series[Any] | None" = None) -> pd.Series:
    """The split of each row by the method of the config; the official test list follows from the patient id."""
    if config.method == "hash":
        return split_by_hash(studies["patient_id"], config)
    if config.method == "stratified":
        return split_stratified(studies, FINDINGS, config, before)
    return split_official(studies, official_lists(studies), config)


def official_lists(studies: pd.DataFrame) -> pd.Series:
    return studies["patient_id"].map(lambda name: "test" if name.endswith(("1", "5")) else "train")


def by_patient(studies: pd.DataFrame, split: pd.Series) -> dict[str, str]:
    """The split of each patient, who must have only one."""
    pairs = set(zip(studies["patient_id"], split, strict=True))
    assert len(pairs) == studies["patient_id"].nunique(), "a patient is in two splits"
    return dict(pairs)


METHODS = pytest.mark.parametrize("method", ["official", "hash", "stratified"])


@METHODS
@given(data=st.data(), studies=populations(), shuffle=st.integers(0, 2**32 - 1))
def test_a_patient_has_one_split_whatever_the_order_of_the_rows(
    method: str, data: st.DataObject, studies: pd.DataFrame, shuffle: int
) -> None:
    config = data.draw(configs(method))
    split = assign(studies, config)
    assert split.index.equals(studies.index)
    assert split.isin(SPLITS).all()
    shuffled = studies.sample(frac=1, random_state=shuffle)
    assert by_patient(studies, split) == by_patient(shuffled, assign(shuffled, config))


@METHODS
@given(data=st.data(), studies=populations())
def test_added_patients_move_nobody(method: str, data: st.DataObject, studies: pd.DataFrame) -> None:
    config = data.draw(configs(method))
    known = set(data.draw(st.lists(st.sampled_from(sorted(studies["patient_id"].unique())), min_size=1)))
    old = studies[studies["patient_id"].isin(known)]
    before = by_patient(old, assign(old, config))
    # The stratified split depends on the others; what keeps a patient is the accepted split.
    accepted = pd.Series(before, dtype="str") if method == "stratified" else None
    after = by_patient(studies, assign(studies, config, accepted))
    assert {patient: after[patient] for patient in known} == before


@given(config=configs("hash"), prefix=st.text(max_size=8))
def test_hash_shares_are_those_asked_for(config: SplitConfig, prefix: str) -> None:
    patients = 1500
    split = split_by_hash(pd.Series([f"{prefix}{number}" for number in range(patients)]), config)
    for name, share in (("val", config.val), ("test", config.test)):
        error = np.sqrt(share * (1 - share) / patients)
        assert abs((split == name).mean() - share) <= 5 * error


@given(config=configs("stratified"), studies=populations())
def test_stratified_exceeds_no_share_by_more_than_a_patient(
    config: SplitConfig, studies: pd.DataFrame
) -> None:
    shares = {"train": 1 - config.val - config.test, "val": config.val, "test": config.test}
    positive = studies[FINDINGS] == 1
    patients = positive.groupby(studies["patient_id"]).any().sum()
    patients = patients[patients > 0]
    assume(len(patients))
    # The finding of the fewest patients is spread first; later ones must take what is left.
    finding = patients.index[patients == patients.min()][0]
    split = split_stratified(studies, FINDINGS, config)
    total = int(positive[finding].sum())
    largest = int(positive[finding].groupby(studies["patient_id"]).sum().max())
    for name, share in shares.items():
        assert positive[finding][split == name].sum() <= share * total + largest + 1e-9
    # Without findings the images are spread in the same way.
    split = split_stratified(studies.assign(**dict.fromkeys(FINDINGS, 0.0)), FINDINGS, config)
    largest = int(studies["patient_id"].value_counts().max())
    for name, share in shares.items():
        assert (split == name).sum() <= share * len(studies) + largest + 1e-9


@given(config=configs("official"), studies=populations())
def test_an_official_test_list_is_used_unchanged(config: SplitConfig, studies: pd.DataFrame) -> None:
    named = official_lists(studies)
    split = split_official(studies, named, config)
    assert (split[named == "test"] == "test").all()
    assert split[named == "train"].isin(["train", "val"]).all()


@given(
    studies=populations(), share=st.floats(0, 1), larger=st.floats(0, 1), shuffle=st.integers(0, 2**32 - 1)
)
def test_sealing_takes_whole_patients_and_a_larger_share_more(
    studies: pd.DataFrame, share: float, larger: float, shuffle: int
) -> None:
    low, high = sorted((share, larger))
    split = split_by_hash(studies["patient_id"], SplitConfig(method="hash", val=0.2, test=0.4, seed=1))
    studies = studies.assign(split=split)
    hidden = pd.Series(sealed(studies, low), index=studies.index)
    by_patient(studies, hidden.map({True: "sealed", False: "open"}))
    assert (studies.loc[hidden, "split"] == "test").all()
    assert (sealed(studies, high) >= hidden).all()
    shuffled = studies.sample(frac=1, random_state=shuffle)
    np.testing.assert_array_equal(sealed(shuffled, low), hidden[shuffled.index])


@given(studies=populations(), sets=st.integers(1, 9), turn=st.integers(0, 40))
def test_gate_sets_divide_the_patients(studies: pd.DataFrame, sets: int, turn: int) -> None:
    patients = studies["patient_id"]
    chosen = np.array([gate_set(patients, sets, turn + number) for number in range(sets)])
    assert (chosen.sum(axis=0) == 1).all()  # consecutive decisions, each with a set of its own
    by_patient(studies, pd.Series(chosen.argmax(axis=0), index=studies.index).astype("str"))
    np.testing.assert_array_equal(chosen[0], gate_set(patients, sets, turn + sets))
