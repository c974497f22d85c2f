"""Each expectation refuses what it is there for, and names the rows."""

from pathlib import Path

import pandas as pd
import pytest

from ral.config.dask import DaskTarget
from ral.config.data import DataConfig
from ral.data.images.locate import list_images
from ral.data.sources import nih
from ral.data.tables.partitions import Partitions
from ral.data.validation.result import Check
from ral.data.validation.run import check_rows

CASES = [
    ("image id is a file name", "Image Index", "x/../y", "error"),
    ("image ids are unique", "Image Index", None, "error"),
    ("labels are in the vocabulary", "Finding Labels", "Efusion", "error"),
    ("labels are in the vocabulary", "Finding Labels", "Mass,Nodule", "error"),
    ("labels are in the vocabulary", "Finding Labels", "", "error"),
    ("labels are in the vocabulary", "Finding Labels", "effusion", "error"),
    ("ids are in one Unicode form", "Image Index", "e\u0301.png", "error"),
    ("No Finding stands alone", "Finding Labels", "Mass|No Finding", "error"),
    ("follow-up is a number", "Follow-up #", "first", "error"),
    ("patient id is a plain number", "Patient ID", "", "error"),
    ("patient id is a plain number", "Patient ID", "02", "error"),
    ("age is a number", "Patient Age", "058Y", "error"),
    ("age is possible", "Patient Age", "414", "warning"),
    ("sex is M or F", "Patient Gender", "male", "error"),
    ("view is known", "View Position", "XX", "error"),
]


def check_table(raw: pd.DataFrame, images: pd.DataFrame, missing_images, docs: Path) -> list[Check]:
    source = nih.Reader(DataConfig(source="nih", root=".", missing_images=missing_images, views=["PA"]))
    with Partitions(docs.with_name("rows"), source.layout.patient) as rows:
        rows.add(raw)
        return check_rows(source, rows, images, DaskTarget(), lambda _: None, docs)[1]


@pytest.fixture(scope="module")
def loaded(small_phantom: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    images, _ = list_images(small_phantom, lambda _: None)
    config = DataConfig(source="nih", root=str(small_phantom), missing_images="fail", views=["PA"])
    return nih.Reader(config).read(), images


def failed(checks: list[Check]) -> dict[str, Check]:
    return {check.check: check for check in checks if not check.passed}


def test_good_table_passes_and_has_data_docs(loaded, tmp_path: Path) -> None:
    raw, images = loaded
    checks = check_table(raw, images, "fail", tmp_path / "docs")
    assert not failed(checks)
    assert len(checks) == 18
    page = (tmp_path / "docs/index.html").read_text()
    assert "raw_label_table" in page
    assert "Label table: passed" in page


def test_verdict_has_no_clock_or_run_id(loaded, tmp_path: Path) -> None:
    raw, images = loaded
    first, second = (check_table(raw, images, "fail", tmp_path / name) for name in "ab")
    assert first == second


@pytest.mark.parametrize(("check", "column", "value", "severity"), CASES)
def test_bad_value_is_found_with_row_and_remedy(
    loaded, tmp_path: Path, check: str, column: str, value: str | None, severity: str
) -> None:
    raw, images = loaded
    raw = raw.copy()
    raw.loc[7, column] = raw.loc[8, column] if value is None else value
    found = failed(check_table(raw, images, "drop", tmp_path / "docs"))[check]
    assert found.severity == severity
    assert found.unexpected == (2 if value is None else 1)
    assert found.samples[0].row == 9  # line 1 is the header
    assert found.remedy
    if value is not None:
        assert found.samples[0].value == (value if check != "age is possible" else "414")


@pytest.mark.parametrize(
    ("word", "near"),
    [("Efusion", "Effusion"), ("mass", "Mass"), ("Pleural Thickening", "Pleural_Thickening")],
)
def test_typo_names_the_nearest(loaded, tmp_path: Path, word: str, near: str) -> None:
    raw, images = loaded
    raw = raw.copy()
    raw.loc[7, "Finding Labels"] = f"Hernia|{word}"
    found = failed(check_table(raw, images, "fail", tmp_path / "docs"))["labels are in the vocabulary"]
    assert found.remedy.startswith(f"Did you mean `{near}` for {word!r}? Allowed, joined by |: Atelectasis")


def test_two_sexes_and_falling_ages_are_warnings(loaded, tmp_path: Path) -> None:
    raw, images = loaded
    raw = raw.copy()
    later = raw.index[raw["Follow-up #"] == "1"][0]
    raw.loc[later, "Patient Gender"] = {"M": "F", "F": "M"}[raw.loc[later, "Patient Gender"]]
    raw.loc[later, "Patient Age"] = "0"
    found = failed(check_table(raw, images, "fail", tmp_path / "docs"))
    assert {name: check.severity for name, check in found.items()} == {
        "a patient has one sex": "warning",
        "ages rise with the follow-ups": "warning",
    }
    assert found["ages rise with the follow-ups"].samples[0].image_id == raw.loc[later, "Image Index"]


def test_two_images_with_one_follow_up_number_are_a_warning(loaded, tmp_path: Path) -> None:
    raw, images = loaded
    raw = raw.copy()
    twice = raw.index[raw["Follow-up #"] == "1"][0]
    raw.loc[twice, "Follow-up #"] = "0"
    found = failed(check_table(raw, images, "fail", tmp_path / "docs"))
    assert list(found) == ["follow-ups of a patient are distinct"]
    assert found["follow-ups of a patient are distinct"].severity == "warning"


@pytest.mark.parametrize(("missing_images", "severity"), [("fail", "error"), ("drop", "warning")])
def test_missing_and_empty_images(loaded, tmp_path: Path, missing_images: str, severity: str) -> None:
    raw, images = loaded
    some = images.iloc[:-3].copy()
    some.loc[5, "bytes"] = 0
    found = failed(check_table(raw, some, missing_images, tmp_path / "docs"))
    assert found["image is present"].unexpected == 3
    assert found["image is present"].severity == severity
    assert found["image is not empty"].severity == "error"
    assert found["image is not empty"].samples[0].image_id == images["image_id"].iloc[5]
