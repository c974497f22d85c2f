"""Characteristics of the splits, counted by hand."""

import numpy as np
import pandas as pd
import pytest

from ral.evaluation.characteristics import COLUMNS, characteristics

STUDIES = pd.DataFrame(
    {
        "image_id": list("abcdefgh"),
        "patient_id": ["1", "1", "1", "2", "3", "3", "4", "5"],
        "split": ["train"] * 4 + ["val"] * 2 + ["test"] * 2,
        "sex": pd.Series(["M", "M", "F", None, "F", "F", "M", None], dtype="str"),
        "age_years": np.array([20, 30, 40, np.nan, 50, 61, np.nan, np.nan], dtype=np.float32),
        "view": pd.Series(["PA", "AP", "PA", "PA", "PA", "PA", "AP", "AP"], dtype="str"),
        "Mass": np.array([1, 0, np.nan, 1, 0, 0, np.nan, np.nan], dtype=np.float32),
    }
)


def row(attribute: str, group: str, split: str) -> dict:
    table = characteristics(STUDIES)
    chosen = table[(table["attribute"] == attribute) & (table["group"] == group) & (table["split"] == split)]
    assert len(chosen) == 1
    return chosen.iloc[0].to_dict()


def test_rows_and_their_order() -> None:
    table = characteristics(STUDIES)
    assert tuple(table.columns) == COLUMNS
    groups = list(dict.fromkeys(zip(table["attribute"], table["group"], strict=True)))
    assert groups == [
        ("all", "all"), ("sex", "F"), ("sex", "M"), ("sex", "unknown"), ("age_years", "known"),
        ("view", "AP"), ("view", "PA"), ("finding", "Mass"),
    ]  # fmt: skip
    assert list(table["split"]) == ["train", "val", "test"] * 8


@pytest.mark.parametrize(
    ("attribute", "group", "split", "images", "of", "share", "patients"),
    [
        ("all", "all", "train", 4, 4, 1, 2),
        ("sex", "M", "train", 2, 4, 0.5, 1),
        ("sex", "unknown", "train", 1, 4, 0.25, 1),
        ("sex", "unknown", "val", 0, 2, 0, 0),
        ("view", "AP", "test", 2, 2, 1, 2),
        ("finding", "Mass", "train", 2, 3, 0.666667, 2),
        ("finding", "Mass", "val", 0, 2, 0, 0),
    ],
)
def test_counts(
    attribute: str, group: str, split: str, images: int, of: int, share: float, patients: int
) -> None:
    found = row(attribute, group, split)
    assert [found[name] for name in ("images", "of", "share", "patients")] == [images, of, share, patients]


def test_ages_are_a_median_and_quartiles_of_the_known_ones() -> None:
    train, test = row("age_years", "known", "train"), row("age_years", "known", "test")
    assert [train[name] for name in ("images", "of", "q1", "median", "q3")] == [3, 4, 25, 30, 35]
    assert (test["images"], test["of"]) == (0, 2)
    assert np.isnan([test["q1"], test["median"], test["q3"], row("finding", "Mass", "test")["share"]]).all()


def test_groups_of_an_attribute_add_up_and_an_absent_one_is_left_out() -> None:
    table = characteristics(STUDIES.drop(columns="view"))
    sex = table[table["attribute"] == "sex"].groupby("split")["images"].sum()
    assert sex.to_dict() == {"train": 4, "val": 2, "test": 2}
    assert "view" not in set(table["attribute"])
