"""Bad tables of sources other than NIH's, drift from an accepted profile, and what the steps do about them."""

import re
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest
import shipped
from forks import forks
from simulated_release import PASSED

from ral.config.data import DataConfig, ValidateParams
from ral.config.environment import Environment
from ral.data import baseline
from ral.data.sources.base import open_source
from ral.data.validation.expectations import raw_expectations
from ral.errors import UserError
from ral.files import read_json

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps write runs/ into the folder they work in."""
    monkeypatch.chdir(tmp_path)


def validate(section: dict, root: Path, **changes: object) -> dict:
    """Run the step; returns the validation, also of data that was refused."""
    from tasks.validate import run

    data = DataConfig(**(section | {"root": str(root)} | changes))
    try:
        run(
            ValidateParams(data=data),
            Environment(state_dir=Path("state")),
            Path("validated"),
            Path("baseline"),
        )
    except UserError as error:
        validation = max(Path("runs").glob("*/validation.json"), key=lambda path: path.stat().st_mtime_ns)
        return read_json(validation) | {"message": str(error)}
    return read_json(Path("validated/validation.json")) | {"message": ""}


def failed(validation: dict) -> dict[str, dict]:
    return {check["check"]: check for check in validation["checks"] if not check["passed"]}


def edit(path: Path, change, sep: str = ",") -> None:
    compression = "gzip" if path.suffix == ".gz" else None
    table = pd.read_csv(path, dtype=str, keep_default_na=False, sep=sep, compression=compression)
    table = change(table)
    table.to_csv(path, index=False, sep=sep, compression=compression)


def put(row: int, column: str, value: str):
    def change(table: pd.DataFrame) -> pd.DataFrame:
        table.loc[row, column] = value
        return table

    return change


def change_all(column: str, value: str):
    return lambda table: table.assign(**{column: value})


BAD = [
    ("chexpert", "train.csv", "Edema", "2", "labels are in the vocabulary", "error", "Edema='2'"),
    ("chexpert", "train.csv", "Sex", "female", "sex is Male or Female or Unknown", "error", "female"),
    ("chexpert", "train.csv", "AP/PA", "Xx", "view is known", "error", None),
    ("chexpert", "train.csv", "Age", "058Y", "age is a number", "error", "058Y"),
    ("chexpert", "train.csv", "Path", "elsewhere/image.jpg", "patient id is there", "error", ""),
    ("padchest", "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv.gz", "Labels", "['cardiomegalia']", "labels are in the vocabulary", "warning", "['cardiomegalia']"),
    ("padchest", "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv.gz", "Labels", "normal", "labels are in the vocabulary", "warning", "normal"),
    ("padchest", "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv.gz", "Labels", "['normal', 'mass']", "No Finding stands alone", "warning", "['normal', 'mass']"),
    ("mimic", "mimic-cxr-2.0.0-chexpert.csv.gz", "Pneumonia", "yes", "labels are in the vocabulary", "error", "Pneumonia='yes'"),
    ("mimic", "mimic-cxr-2.0.0-split.csv.gz", "split", "holdout", "official split is train, val or test", "error", None),
    ("vindr", "annotations/image_labels_train.csv", "COPD", "x", "labels are in the vocabulary", "error", "COPD='x'"),
    ("table", "befunde.csv", "Datei", "../outside.png", "image is inside the data folder", "error", "../outside.png"),
    ("table", "befunde.csv", "Patient", " 7", "patient id is there", "error", " 7"),
    ("table", "befunde.csv", "Patient", "", "patient id is there", "error", ""),
    ("table", "befunde.csv", "Patient", "7\n", "patient id is there", "error", "7\n"),
    ("table", "befunde.csv", "Alter", "٤٠", "age is a number", "error", "٤٠"),
    ("table", "befunde.csv", "Patient", "A\u0308" + "7", "ids are in one Unicode form", "error", "A\u0308" + "7"),
    ("table", "befunde.csv", "Befund", "Efusion", "labels are in the vocabulary", "error", "Efusion"),
    ("table", "befunde.csv", "Befund", "effusion", "labels are in the vocabulary", "error", "effusion"),
    ("table", "befunde.csv", "Befund", "Mass + o. B.", "No Finding stands alone", "error", "Mass + o. B."),
]  # fmt: skip


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory):
    made: dict[str, dict] = {}

    def section(name: str) -> dict:
        if name not in made:
            made[name] = shipped.write(name, tmp_path_factory.mktemp(name))
        return made[name]

    return section


def copied(section: dict, tmp_path: Path) -> Path:
    return Path(shutil.copytree(section["root"], tmp_path / "images"))


@pytest.mark.parametrize(("name", "file", "column", "value", "check", "severity", "shown"), BAD)
def test_bad_cell_is_found_in_every_layout(
    written,
    tmp_path: Path,
    name: str,
    file: str,
    column: str,
    value: str,
    check: str,
    severity: str,
    shown: str | None,
) -> None:
    section = written(name)
    root = copied(section, tmp_path)
    row = 21 if column == "AP/PA" else 20  # a frontal image
    edit(root / file, put(row, column, value), sep=";" if name == "table" else ",")
    found = failed(validate(section, root, missing_images="drop"))[check]
    assert found["severity"] == severity
    assert found["unexpected"] >= 1
    if name != "vindr" and "mimic" not in name:
        assert found["samples"][0]["row"] == row + 2  # line 1 is the header
    if shown is not None:
        assert found["samples"][0]["value"] == shown


@pytest.mark.parametrize(
    ("word", "near"),
    [("Efusion", "Effusion"), ("effusion", "Effusion"), ("Pleural thickening", "Pleural_Thickening")],
)
def test_typo_names_the_nearest_label(written, tmp_path: Path, word: str, near: str) -> None:
    root = copied(written("table"), tmp_path)
    edit(root / "befunde.csv", put(20, "Befund", f"Mass + {word}"), sep=";")
    message = validate(written("table"), root)["message"]
    assert f"Did you mean `{near}` for {word!r}?" in message
    assert "befunde.csv" in message


@pytest.mark.parametrize(
    ("column", "value", "keys"),
    [
        ("Geschlecht", "divers", ["data.table.sexes", "männlich: M"]),
        ("Projektion", "sitzend", ["data.table.views", "liegend: AP"]),
        ("Befund", "Spange", ["data.table.findings", "data.table.no_finding", "data.table.label_separator, ' + '"]),
        ("Befund", "Mass + o. B.", ["data.table.no_finding"]),
        ("Aufnahme", "", ["data.table.image_id"]),
        ("Patient", "", ["data.table.patient_id"]),
        ("Verlauf", "erste", ["data.table.follow_up"]),
        ("Alter", "43,5", ["data.table.age_years"]),
        ("Datei", "/tmp/a.png", ["data.table.path"]),
        ("Datei", "röntgen/none.png", ["data.table.path", "data.missing_images"]),
        ("Name", "training", ["data.table.split"]),
        ("Name", "MONO", ["data.table.photometric"]),
    ],
)  # fmt: skip
def test_a_remedy_for_an_own_table_names_the_key(
    written, tmp_path: Path, column: str, value: str, keys: list[str]
) -> None:
    section = written("table")
    root = copied(section, tmp_path)
    if column == "Name":
        key = keys[0].rpartition(".")[2]
        section = section | {"table": section["table"] | {key: column}}
        edit(root / "befunde.csv", change_all(column, ""), sep=";")
    edit(root / "befunde.csv", put(20, column, value), sep=";")
    message = validate(section, root)["message"]
    for key in keys:
        assert key in message


def test_a_remedy_for_a_column_per_finding_names_the_keys(written, tmp_path: Path) -> None:
    section = written("table")
    root = copied(section, tmp_path)
    edit(root / "befunde.csv", lambda table: table.assign(Erguss="0", frei="1"), sep=";")
    edit(root / "befunde.csv", put(20, "Erguss", "ja"), sep=";")
    columns = {"labels": None, "findings": {"Effusion": "Erguss"}, "no_finding": "frei"}
    message = validate(section | {"table": section["table"] | columns}, root)["message"]
    assert "Erguss='ja'" in message
    assert "data.table.findings names the columns" in message


@pytest.mark.parametrize("name", ["nih", "chexpert", "padchest"])
def test_a_published_table_has_no_keys(written, tmp_path: Path, name: str) -> None:
    """data.table describes own tables only."""
    config = {"root": str(tmp_path)} | (written(name) if name != "nih" else {"source": "nih"})
    source = open_source(
        DataConfig(**{"missing_images": "fail", "views": ["PA"]} | config | {"root": str(tmp_path)})
    )
    for check in raw_expectations(source.layout, "fail"):
        assert "data.table" not in check.meta["remedy"]


def test_one_patient_with_two_sexes_is_a_warning(written, tmp_path: Path) -> None:
    root = copied(written("table"), tmp_path)

    def change(table: pd.DataFrame) -> pd.DataFrame:
        twice = table.index[table["Patient"].duplicated()][0]
        table.loc[twice, "Geschlecht"] = {"männlich": "weiblich", "weiblich": "männlich"}[
            table.loc[twice, "Geschlecht"]
        ]
        return table

    edit(root / "befunde.csv", change, sep=";")
    found = failed(validate(written("table"), root))
    assert list(found) == ["a patient has one sex"]
    assert found["a patient has one sex"]["severity"] == "warning"
    assert found["a patient has one sex"]["column"] == "Geschlecht"


def test_ages_that_fall_are_a_warning(written, tmp_path: Path) -> None:
    root = copied(written("table"), tmp_path)

    def change(table: pd.DataFrame) -> pd.DataFrame:
        later = table.index[table["Verlauf"] == "2"][0]
        table.loc[later, "Alter"] = "3"
        return table

    edit(root / "befunde.csv", change, sep=";")
    found = failed(validate(written("table"), root))
    assert list(found) == ["ages rise with the follow-ups"]
    assert found["ages rise with the follow-ups"]["samples"][0]["value"] == "3"


@pytest.mark.parametrize("name", ["vindr", "chestmnist"])
def test_sources_without_patients_say_so(written, name: str) -> None:
    found = failed(validate(written(name), Path(written(name)["root"])))
    assert list(found) == ["patients are known"]
    assert "images of one person may be in two splits" in found["patients are known"]["remedy"]


def test_duplicated_image_id_and_extra_column(written, tmp_path: Path) -> None:
    root = copied(written("table"), tmp_path)
    edit(root / "befunde.csv", lambda table: table.assign(Notiz="x"), sep=";")
    assert validate(written("table"), root)["passed"]
    edit(root / "befunde.csv", lambda table: put(20, "Aufnahme", table.loc[4, "Aufnahme"])(table), sep=";")
    assert failed(validate(written("table"), root))["image ids are unique"]["unexpected"] == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text.replace("Befund;", "Befunde;", 1), ["lacks the column `Befund`, which data.table.labels names", "rename it to `Befunde`"]),
        (lambda text: "a;b" + text[text.index("\n"):], ["none of the columns needed", "python -m ral.data.sources.table FILE"]),
        (lambda text: text.replace("Befund;", "X;", 1), ["lacks the column `Befund`, which", "Found: Aufnahme"]),
        (lambda text: text.replace(";", "\t"), ["separated by tabs, not by semicolons", "data.table.separator"]),
        (lambda text: text.split("\n")[0] + "\n", ["has a header but no rows"]),
    ],
)  # fmt: skip
def test_bad_header_of_an_own_table(written, tmp_path: Path, change, words: list[str]) -> None:
    root = copied(written("table"), tmp_path)
    path = root / "befunde.csv"
    path.write_text(change(path.read_text(encoding="utf-8-sig")), encoding="utf-8")
    with pytest.raises(UserError) as caught:
        open_source(DataConfig(**(written("table") | {"root": str(root)}))).read()
    for word in ["befunde.csv", *words]:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("name", "file", "words"),
    [
        ("mimic", "mimic-cxr-2.0.0-metadata.csv.gz", "has no label table"),
        ("cxr_lt_2024_task1", "cxr-lt-2024", "none of train_labeled.csv"),
        ("vindr", "annotations", "has no label table"),
        ("padchest", "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv.gz", "has no label table"),
        ("chestmnist", "chestmnist_64.npz", "has no label table"),
        ("table", "befunde.csv", "does not exist"),
    ],
)
def test_missing_table_is_named(written, tmp_path: Path, name: str, file: str, words: str) -> None:
    root = copied(written(name), tmp_path)
    gone = root / file
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    with pytest.raises(UserError, match=words):
        open_source(DataConfig(**(written(name) | {"root": str(root)}))).read()


def test_truncated_gzip_table(written, tmp_path: Path) -> None:
    root = copied(written("padchest"), tmp_path)
    path = next(root.glob("PADCHEST*"))
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(UserError, match=r"truncated|cannot be read"):
        open_source(DataConfig(**(written("padchest") | {"root": str(root)}))).read()


@pytest.mark.long
def test_a_delivery_is_held_to_the_accepted_profile(written, tmp_path: Path) -> None:
    section = written("table")
    root = copied(section, tmp_path)
    first = validate(section, root)
    assert {check["kind"] for check in first["checks"]} == {"table"}
    assert first["profile"]["rows"] == 240
    command = [*forks().command("ral.data.baseline"), "profile", "--validated", "validated"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stderr
    assert read_json(Path("baseline/profile.json")) == first["profile"]
    again = validate(section, root)
    assert again["passed"]
    assert [check["kind"] for check in again["checks"][len(first["checks"]) :]] == ["drift"] * 4

    # A machine that labels every second image: far from what was accepted.
    def change(table: pd.DataFrame) -> pd.DataFrame:
        table.loc[table.index % 2 == 0, "Befund"] = "Hernia"
        return table.iloc[:200]

    edit(root / "befunde.csv", change, sep=";")
    validation = validate(section, root)
    found = failed(validation)
    assert found["no column or label drifted far"]["severity"] == "error"
    assert "Hernia" in found["no column or label drifted far"]["observed"]
    assert "Hernia" in validation["message"]
    assert "python -m ral.data.baseline profile" in validation["message"]
    # The page that shows the failed check, not that of the table, which passed.
    (page,) = re.findall("^Details: (.*)$", validation["message"], re.M)
    assert page.endswith("data_docs/accepted_profile.html")
    assert "no column or label drifted far" in Path(page).read_text()
    assert "accepted_profile.html" in Path(page).with_name("index.html").read_text()
    assert found["prevalences are near the accepted ones"]["severity"] == "warning"
    assert found["no rows were lost"]["observed"] == "rows 0.833"
    lenient = validate(section, root, drift={"warn": 9.0, "fail": 9.0, "prevalence": 100.0, "rows": 0.5})
    assert lenient["passed"]
    assert not failed(lenient).keys() & set(found)


def test_profile_is_accepted_only_of_data_that_passed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Run validate first"):
        baseline.accept_profile(tmp_path, tmp_path / "baseline")
    PASSED.model_copy(update={"passed": False}).write(tmp_path / "validation.json")
    with pytest.raises(UserError, match="did not pass"):
        baseline.accept_profile(tmp_path, tmp_path / "baseline")
    (tmp_path / "profile.json").write_text("[1]")
    with pytest.raises(UserError, match="is not a profile"):
        baseline.read_profile(tmp_path)
    assert baseline.read_profile(tmp_path / "none") is None
