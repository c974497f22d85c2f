"""`python -m ral.data.sources.table`: what is certain is written, what is not is asked."""

import csv
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import shipped
from conftest import ROOT, SMALL, set_params
from forks import forks

from ral.config.base import load, read_yaml
from ral.config.params import Params
from ral.data.wizard.description import Description
from ral.data.wizard.guess import describe
from ral.errors import UserError

Run = Callable[..., subprocess.CompletedProcess[str]]
Rows = list[dict[str, object]]

GERMAN = {
    "Effusion": "Erguss", "Cardiomegaly": "Kardiomegalie", "Atelectasis": "Atelektase", "Infiltration": "Infiltrat",
    "Mass": "Raumforderung", "Nodule": "Rundherd", "Pneumonia": "Pneumonie", "Pneumothorax": "Pneumothorax",
    "Edema": "Lungenödem", "Emphysema": "Emphysem", "Fibrosis": "Fibrose", "Hernia": "Hernie",
    "Consolidation": "Konsolidierung", "Pleural_Thickening": "Pleuraschwiele",
}  # fmt: skip


def clinic(root: Path) -> Rows:
    """40 images of a German clinic, and their rows; the table is not written yet."""
    rows: Rows = []
    for number, image in enumerate(shipped.people(200)[:40]):
        name = f"bilder/{number:04d}.png"
        shipped.save_image(root / name, image)
        rows.append(
            {
                "Aufnahme-Nr.": f"A{number}",
                "Patienten-ID": f"P{image.patient}",
                "Datei": name,
                "Geschlecht": {"M": "m", "F": "w"}[image.sex],
                "Alter": image.age,
                "Projektion": {"PA": "p.a.", "AP": "liegend"}[image.view],
                "Befunde": "; ".join(GERMAN[name] for name in image.findings) or "o. B.",
                "Datum": f"2024-03-{1 + number % 28:02d}",
            }
        )
    return rows


def write(root: Path, rows: Rows, separator: str = ";") -> Path:
    path = root / "aufnahmen.csv"
    with path.open("w", newline="", encoding="utf-8") as stream:
        table = csv.DictWriter(stream, list(rows[0]), delimiter=separator)
        table.writeheader()
        table.writerows(rows)
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Rows]:
    """A folder with the images, and the rows; do not change them."""
    root = tmp_path_factory.mktemp("klinik")
    return root, clinic(root)


@pytest.fixture
def data(images: tuple[Path, Rows], tmp_path: Path) -> tuple[Path, Rows]:
    """A copy that a test may change."""
    root, rows = images
    return Path(shutil.copytree(root, tmp_path / "klinik")), [dict(row) for row in rows]


def asked(description: Description) -> set[str]:
    """The keys with a question."""
    return {*description.questions, *(["findings"] if description.doubtful else [])}


def test_a_german_table_is_described(data: tuple[Path, Rows]) -> None:
    root, rows = data
    found = describe(write(root, rows))
    findings = found.values.pop("findings")
    used = {word for row in rows for word in str(row["Befunde"]).split("; ")} - {"o. B."}
    assert findings == {finding: word for finding, word in GERMAN.items() if word in used}
    assert found.values == {
        "file": "aufnahmen.csv", "separator": ";", "image_id": "Aufnahme-Nr.", "patient_id": "Patienten-ID",
        "path": "Datei", "view": "Projektion", "views": {"p.a.": "PA"}, "sex": "Geschlecht",
        "sexes": {"m": "M", "w": "F"}, "age_years": "Alter", "labels": "Befunde", "label_separator": "; ",
        "no_finding": "o. B.",
    }  # fmt: skip
    assert asked(found) == {"views"}  # liegend: AP almost always, but nothing in the table says so
    assert "liegend" in found.questions["views"][0]
    assert "Datum" in found.notes["follow_up"][0]


def test_a_column_per_finding_and_images_found_by_name(tmp_path: Path) -> None:
    root = tmp_path
    rows = []
    for number, image in enumerate(shipped.people(200)[:40]):
        shipped.save_image(root / "images" / f"{number}.png", image)
        marks = {name: int(name in image.findings) for name in ("Pleural Effusion", "Mass")}
        rows.append(
            {
                "Image Index": f"{number}.png",
                "Patient ID": image.patient,
                "Patient Gender": image.sex,
                **marks,
            }
            | {"No finding": int(not any(marks.values())), "smoker": number % 2, "split": "train"}
        )
    found = describe(write(root, rows, ","))
    assert found.values == {
        "file": "aufnahmen.csv", "separator": ",", "image_id": "Image Index", "patient_id": "Patient ID",
        "sex": "Patient Gender", "sexes": {}, "split": "split", "no_finding": "No finding",
        "findings": {"Effusion": "Pleural Effusion", "Mass": "Mass"},
    }  # fmt: skip
    assert [word for _, word, _ in found.doubtful] == ["smoker"]
    assert asked(found) == {"findings"}
    assert found.split_method == "official"


def change(column: str, value: Callable[[int, dict], object]) -> Callable[[Rows], None]:
    """Set a column of every row; value(number, row)."""

    def apply(rows: Rows) -> None:
        for number, row in enumerate(rows):
            row[column] = value(number, row)

    return apply


def rename(old: str, new: str) -> Callable[[Rows], None]:
    def apply(rows: Rows) -> None:
        for row in rows:
            row[new] = row.pop(old)

    return apply


# Change of the table, key that is asked, and what must not be guessed for it: key -> value.
UNSURE = {
    "sex in digits": (change("Geschlecht", lambda n, r: 1 + n % 2), "sexes", {"sexes": {}}),
    # H and M may be hombre and mujer: M is then female.
    "sex in Spanish": (change("Geschlecht", lambda n, r: "HM"[n % 2]), "sexes", {"sexes": {}}),
    "one sex": (change("Geschlecht", lambda n, r: "m"), "sexes", {"sexes": {}}),
    "column of sexes without a name": (rename("Geschlecht", "G"), "sex", {}),
    "view without a meaning": (change("Projektion", lambda n, r: ""), "views", {}),
    "no patient": (rename("Patienten-ID", "Nummer"), "patient_id", {"patient_id": "?"}),
    "two patients": (change("PID", lambda n, r: n), "patient_id", {"patient_id": "?"}),
    "row without a patient": (change("Patienten-ID", lambda n, r: "" if n == 3 else n), "patient_id", {"patient_id": "?"}),
    "image ids that repeat": (change("Aufnahme-Nr.", lambda n, r: n // 2), "image_id", {"image_id": "?"}),
    "two files": (change("Vorschau", lambda n, r: r["Datei"]), "path", {}),
    "age in months": (change("Alter", lambda n, r: 400 + n), "age_years", {}),
    "age with a unit": (change("Alter", lambda n, r: f"0{20 + n}Y"), "age_years", {}),
    "split in other words": (change("Split", lambda n, r: "training"), "split", {}),
    "follow-up that is no number": (change("Verlauf", lambda n, r: "erste"), "follow_up", {}),
    "word that is no known finding": (change("Befunde", lambda n, r: "Erguss; Spange" if n == 1 else r["Befunde"]), "findings", {}),
    "two words of a finding": (change("Befunde", lambda n, r: "Pleuraerguss" if n == 1 else "Erguss"), "findings", {}),
    "two words of no finding": (change("Befunde", lambda n, r: "normal" if n == 1 else "o. B."), "no_finding", {}),
    "no label": (change("Befunde", lambda n, r: "" if n == 1 else r["Befunde"]), "labels", {}),
    "word that is empty": (change("Befunde", lambda n, r: "Erguss; " if n == 1 else r["Befunde"]), "labels", {}),
    "words joined in two ways": (change("Befunde", lambda n, r: "Erguss;Fibrose" if n == 1 else r["Befunde"]), "label_separator", {}),
    "report in free text": (change("Befunde", lambda n, r: " ".join(f"Satz {n} Wort {i}," for i in range(5))), "labels", {}),
    "marks in words": (change("Hernia", lambda n, r: "ja" if n == 1 else "nein"), "findings", {}),
}  # fmt: skip


@pytest.mark.parametrize("name", UNSURE)
def test_what_is_not_certain_is_asked(data: tuple[Path, Rows], name: str) -> None:
    root, rows = data
    apply, key, values = UNSURE[name]
    if name == "marks in words":
        for row in rows:
            del row["Befunde"]
    apply(rows)
    found = describe(write(root, rows))
    assert key in asked(found)
    for other, value in values.items():
        assert found.values[other] == value
    for wrong in ("age_years", "split", "follow_up"):
        if key == wrong:
            assert wrong not in found.values


def test_images_elsewhere_are_asked_for(data: tuple[Path, Rows]) -> None:
    root, rows = data
    for row in rows:
        row["Datei"] = str(row["Datei"]).removeprefix("bilder/")
    question = describe(write(root, rows)).questions["path"][0]
    assert "0000.png" in question
    assert "Rename that folder to images" in question
    (root / "bilder").rename(root / "images")
    found = describe(root / "aufnahmen.csv")
    assert "path" not in asked(found)
    assert found.values["image_id"] == "Datei"
    shutil.rmtree(root / "images")
    assert "Where is 0000.png" in describe(root / "aufnahmen.csv").questions["path"][0]


def test_ids_without_the_ending_of_the_files_are_asked(data: tuple[Path, Rows]) -> None:
    root, rows = data
    (root / "bilder").rename(root / "images")
    for row in rows:
        row["Aufnahme-Nr."] = Path(str(row.pop("Datei"))).stem
    (question,) = describe(write(root, rows)).questions["image_id"]
    assert "Is it `Aufnahme-Nr.`?" in question
    assert "write 0000.png instead of 0000" in question


def test_images_in_archives_are_found_by_name(small_phantom: Path) -> None:
    """NIH's table, as if it were one's own."""
    found = describe(small_phantom / "Data_Entry_2017.csv")
    assert not asked(found)
    assert found.values["image_id"] == "Image Index"
    assert found.values["follow_up"] == "Follow-up #"
    assert "images_001.tar.gz, which this command does not open" in found.notes["path"][0]


def test_a_table_in_a_folder_beside_the_images(data: tuple[Path, Rows]) -> None:
    root, rows = data
    (root / "tabellen").mkdir()
    shutil.move(write(root, rows), root / "tabellen/t.csv")
    found = describe(root / "tabellen/t.csv")
    assert (found.root, found.values["file"], found.values["path"]) == (root, "tabellen/t.csv", "Datei")


def test_parquet_is_described_as_the_same_csv(data: tuple[Path, Rows]) -> None:
    root, rows = data
    of_csv = describe(write(root, rows)).values
    pd.DataFrame(rows).to_parquet(root / "aufnahmen.parquet")
    of_parquet = describe(root / "aufnahmen.parquet").values
    assert of_parquet == {k: v for k, v in of_csv.items() if k != "separator"} | {"file": "aufnahmen.parquet"}


def test_cells_are_text_in_the_yaml(data: tuple[Path, Rows], tmp_path: Path) -> None:
    root, rows = data
    rows[0]["Befunde"] = "Erguss; a\ngate: {}\n#: 'x' - \"y\""
    rows[1]["Geschlecht"] = "d\n  evil: true"
    done = wizard(root, rows, tmp_path)
    assert done.returncode == 0, done.stderr
    content = read_yaml(tmp_path / "params.yaml")
    assert content["gate"] == read_yaml(ROOT / "params.yaml")["gate"]
    assert "evil" not in content["data"]["table"]


def wizard(root: Path, rows: Rows, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the command, which writes params.yaml in `folder`."""
    shutil.copy(ROOT / "params.yaml", folder)
    command = [*forks().command("ral.data.sources.table"), str(write(root, rows)), "--out", "params.yaml"]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)}, check=False
    )


def test_a_question_that_is_not_answered_stops_the_run(data: tuple[Path, Rows], tmp_path: Path) -> None:
    root, rows = data
    rename("Patienten-ID", "Nummer")(rows)
    done = wizard(root, rows, tmp_path)
    assert "- patient_id: Which column has the patient's id? Perhaps Nummer" in done.stderr
    with pytest.raises(
        UserError, match=r"data\.table\.patient_id: the question above this key is not answered"
    ):
        load(tmp_path / "params.yaml", Params)
    text = (tmp_path / "params.yaml").read_text()
    above = text[: text.index("    patient_id:")].splitlines()[-1]
    assert above.startswith("    # ? Which column has the patient's id?")


def test_the_other_parameters_stay(data: tuple[Path, Rows], tmp_path: Path) -> None:
    assert wizard(*data, tmp_path).returncode == 0
    before, after = read_yaml(ROOT / "params.yaml"), read_yaml(tmp_path / "params.yaml")
    assert set(before) == set(after)
    for name in set(before) - {"data", "split"}:
        assert before[name] == after[name]
    assert set(before["data"]["table"]) == set(after["data"]["table"])
    assert after["split"] == before["split"] | {"method": "stratified"}
    assert load(tmp_path / "params.yaml", Params).data.table.file == "aufnahmen.csv"


def test_help_is_light() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "ral.data.sources.table", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "FILE.csv" in done.stdout
    for package in ("pandas", "torch", "numpy", "pydantic"):
        assert f" {package}\n" not in done.stderr


def test_a_missing_or_unreadable_table_is_one_message(run: Run, tmp_path: Path) -> None:
    command = ("python", "-m", "ral.data.sources.table")
    printed = run(*command, "none.csv", cwd=tmp_path, code=1, PYTHONPATH=str(ROOT)).stdout
    assert printed.startswith("error: none.csv does not exist")
    (tmp_path / "latin.csv").write_bytes("Patient;Größe\n1;2\n".encode("latin-1"))
    printed = run(*command, "latin.csv", cwd=tmp_path, code=1, PYTHONPATH=str(ROOT)).stdout
    assert "line 1 contains the byte 0xf6. Save it in UTF-8" in printed
    assert "Traceback" not in printed


def answer(params: Path, key: str, old: str, new: str) -> None:
    """Edit the line of a key, as a person does."""
    lines = params.read_text().splitlines(keepends=True)
    number = next(n for n, line in enumerate(lines) if line.startswith(f"    {key}: "))
    assert old in lines[number]
    lines[number] = lines[number].replace(old, new)
    params.write_text("".join(lines))


@pytest.mark.parametrize(
    "steps",
    [
        ("preprocess",),
        pytest.param(
            ("preprocess", "train", "explain", "evaluate", "robustness", "report"), marks=pytest.mark.long
        ),
    ],
    ids=["to the pixels", "to the report"],
)
def test_a_table_comes_to_a_report_by_its_messages(
    fork: Run, data: tuple[Path, Rows], tmp_path: Path, steps: tuple[str, ...]
) -> None:
    """First try: the question about `liegend` is overlooked. The message says what to set; the second try ends well."""
    folder = tmp_path / "project"
    folder.mkdir()
    assert wizard(*data, folder).returncode == 0
    set_params(folder, {name: SMALL[name] for name in ("preprocess", "model", "train", "evaluate")})
    fork("ral.config", cwd=folder)
    printed = fork("tasks.validate", cwd=folder, code=1).stdout
    assert printed.count("error: ") == 1
    assert printed.count("failed") == 1
    assert "liegend" in printed
    assert "map the words of your table in data.table.views" in printed
    answer(folder / "params.yaml", "views", "{p.a.: PA}", "{p.a.: PA, liegend: AP}")
    for step in ("validate", *steps):
        fork(f"tasks.{step}", cwd=folder)
    studies = pd.read_parquet(folder / "data/prepared/studies.parquet")
    assert len(studies) == 40
    assert set(studies["sex"]) == {"M", "F"}
    assert set(studies["view"]) == {"PA", "AP"}
    if "report" in steps:
        assert "Raumforderung" in (folder / "reports/report.html").read_text()
