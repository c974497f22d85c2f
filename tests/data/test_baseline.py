"""The accepted profile, split and logits: what is read, what is refused with a remedy, and who may be accepted."""

import subprocess
from pathlib import Path

import pandas as pd
import pytest
from conftest import ROOT
from forks import forks
from simulated_release import PASSED

from ral.data import baseline
from ral.data.validation.result import Profile
from ral.errors import UserError
from ral.files import read_json, write_json


def test_a_profile_with_the_keys_of_another_version_names_those_of_this_one(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    write_json(path, {"films": 240, "columns": {}, "labels": {}})
    with pytest.raises(UserError, match="it has no rows, but columns, films, labels") as error:
        baseline.read_profile(tmp_path)
    assert str(path) in str(error.value)
    assert "python -m ral.data.baseline profile" in str(error.value)
    write_json(path, {"rows": 240, "columns": {}, "labels": {}})
    assert baseline.read_profile(tmp_path) == Profile(rows=240, columns={}, labels={})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"rows": "many", "columns": {}, "labels": {}}, "rows: Input should be a valid integer"),
        ({"rows": 1, "columns": {"view": {"PA": None}}, "labels": {}}, "columns.view.PA: Input should be"),
        ({"rows": 1, "columns": {}, "labels": {}, "films": 1}, "films: Extra inputs are not permitted"),
    ],
)
def test_a_profile_with_a_wrong_value_names_it(
    tmp_path: Path, content: dict[str, object], words: str
) -> None:
    write_json(tmp_path / "profile.json", content)
    with pytest.raises(UserError, match="is not a profile of this version") as error:
        baseline.read_profile(tmp_path)
    assert words in str(error.value)
    assert "Delete it" in str(error.value)


def test_without_files_nothing_is_compared(tmp_path: Path) -> None:
    assert baseline.read_profile(tmp_path) is None
    assert baseline.read_split(tmp_path) is None
    assert baseline.read_logits(tmp_path) is None


SPLIT = pd.DataFrame({"patient_id": ["a", "b", "c"], "split": ["train", "val", "test"]})


def test_the_accepted_split_is_by_patient(tmp_path: Path) -> None:
    SPLIT.to_parquet(tmp_path / "split.parquet")
    split = baseline.read_split(tmp_path)
    assert split is not None
    assert split.to_dict() == {"a": "train", "b": "val", "c": "test"}


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (SPLIT.replace("c", "a"), "lists a patient twice"),
        (SPLIT.replace("val", "dev"), "an unknown split name"),
        (SPLIT.drop(columns="split"), "is not a split"),
        (None, "is not a split"),
    ],
    ids=["a patient twice", "another word", "no column", "no table"],
)
def test_what_is_no_split_is_refused(tmp_path: Path, table: pd.DataFrame | None, words: str) -> None:
    path = tmp_path / "split.parquet"
    path.write_text("no table") if table is None else table.to_parquet(path)
    with pytest.raises(UserError, match=words) as error:
        baseline.read_split(tmp_path)
    assert str(path) in str(error.value)


def test_logits_are_a_table_with_ids(tmp_path: Path) -> None:
    path = tmp_path / "test_logits.parquet"
    table = pd.DataFrame({"image_id": ["i", "j"], "Mass": [0.5, -1.5]})
    table.to_parquet(path)
    assert table.equals(baseline.read_logits(tmp_path))
    table.drop(columns="image_id").to_parquet(path)
    with pytest.raises(UserError, match="has no column image_id"):
        baseline.read_logits(tmp_path)
    path.write_text("no table")
    with pytest.raises(UserError, match="is not a Parquet table"):
        baseline.read_logits(tmp_path)


def test_what_was_accepted_is_read_back(tmp_path: Path) -> None:
    validated, prepared, models, folder = (tmp_path / name for name in "vpmb")
    PASSED.write(validated / "validation.json")
    prepared.mkdir()
    (models / "logits").mkdir(parents=True)
    SPLIT.to_parquet(prepared / "split.parquet")
    pd.DataFrame({"image_id": ["i"], "Mass": [0.5]}).to_parquet(models / "logits/test.parquet")
    command = [*forks().command("ral.data.baseline"), "--validated", str(validated)]
    command += ["--prepared", str(prepared), "--models", str(models), "--baseline", str(folder)]
    for what, name in (
        ("profile", "profile.json"),
        ("split", "split.parquet"),
        ("logits", "test_logits.parquet"),
    ):
        done = subprocess.run([*command, what], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout == f"accepted: {folder / name}. Commit it.\n"
    assert baseline.read_profile(folder) == PASSED.profile
    assert read_json(folder / "profile.json") == {"rows": 1, "patients": 1, "columns": {}, "labels": {}}
    assert (folder / "split.parquet").read_bytes() == (prepared / "split.parquet").read_bytes()
    assert (folder / "test_logits.parquet").read_bytes() == (models / "logits/test.parquet").read_bytes()


def test_nothing_is_accepted_before_its_step_has_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Run preprocess first: dvc repro preprocess"):
        baseline.accept_split(tmp_path, tmp_path / "baseline")
    with pytest.raises(UserError, match="Run train first: dvc repro train"):
        baseline.accept_logits(tmp_path, tmp_path / "baseline")
    assert not (tmp_path / "baseline").exists()
