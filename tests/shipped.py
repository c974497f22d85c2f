"""Small data folders in the layouts of the data sets' owners; people and labels are made up, films are phantoms.

Columns are named and ordered as the owners ship them, as far as public code and papers show (docs/sources.md).
"""

import csv
import gzip
import io
import re
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ral.config.data import PhantomConfig
from ral.data.phantom.population import Film, draw_population
from ral.data.phantom.signs import draw_film
from ral.labels import LABEL_SETS, NO_FINDING

CONFIG = PhantomConfig(films=240, size=48, floor=0.05, seed=3)


def people(films: int = CONFIG.films) -> list[Film]:
    """Rows of made-up patients."""
    return draw_population(CONFIG.model_copy(update={"films": films}))


def save_film(path: Path, film: Film) -> None:
    """Draw a film of 48 pixels; the file's ending says how it is stored."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(draw_film(film, CONFIG.size, CONFIG.seed)).save(
        path, **({"quality": 97} if path.suffix == ".jpg" else {})
    )


def write_csv(path: Path, header: Sequence[str] | str, rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV, gzipped where its name says so."""
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(
        [header.split(",") if isinstance(header, str) else header, *rows]
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    content = stream.getvalue().encode()
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)


def positive(film: Film, number: int, finding: str) -> bool:
    """Whether a made-up film has a finding: as drawn; where the phantom has no such sign, by number and name."""
    if finding in LABEL_SETS["nih"]["nih"]:
        return finding in film.findings
    return number % 3 == 1 and (number + zlib.crc32(finding.encode())) % 4 == 0


CHEXPERT_HEADER = (
    "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung Lesion,"
    "Edema,Consolidation,Pneumonia,Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,Support Devices"
)


def chexpert(root: Path) -> dict[str, object]:
    """train.csv and valid.csv; every eleventh film is a lateral, labels are 1.0, 0.0, -1.0 or empty."""
    labels = list(LABEL_SETS["chexpert"]["chexpert"])
    rows: dict[str, list[list[object]]] = {"train": [], "valid": []}
    for number, film in enumerate(people()):
        part = "valid" if film.test else "train"
        lateral = number % 11 == 0
        name = f"{part}/patient{film.patient:05d}/study{film.follow_up + 1}/view1_{'lateral' if lateral else 'frontal'}.jpg"
        save_film(root / name, film)
        has = [positive(film, number, label) for label in labels]
        marks = [
            "1.0" if there else ("0.0", "", "-1.0")[min((number + i) % 7, 2)] for i, there in enumerate(has)
        ]
        healthy = not any(has)
        if healthy:
            marks = [""] * len(marks)
        sex = "Unknown" if number == 3 else {"M": "Male", "F": "Female"}[film.sex]
        rows[part].append(
            [
                f"CheXpert-v1.0-small/{name}",
                sex,
                film.age,
                "Lateral" if lateral else "Frontal",
                "" if lateral else film.view,
                "1.0" if healthy else "",
                *marks,
            ]
        )
    for part, content in rows.items():
        write_csv(root / f"{part}.csv", CHEXPERT_HEADER, content)
    return {"source": "chexpert", "views": ["PA", "AP"], "uncertain": "negative", "unmentioned": "negative"}


METADATA_HEADER = (
    "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns,StudyDate,StudyTime,"
    "ProcedureCodeSequence_CodeMeaning,ViewCodeSequence_CodeMeaning,PatientOrientationCodeSequence_CodeMeaning"
)


def mimic_id(film: Film) -> tuple[str, str, str]:
    """dicom_id, subject_id, study_id."""
    dicom = f"{film.patient:08x}-{film.follow_up:08x}-0000abcd-12345678-9abcdef0"
    return dicom, str(10_000_000 + film.patient), str(50_000_000 + film.patient * 100 + film.follow_up)


def _mimic_base(root: Path) -> list[Film]:
    films = people()
    metadata = []
    for number, film in enumerate(films):
        dicom, subject, study = mimic_id(film)
        save_film(root / f"files/p{subject[:2]}/p{subject}/s{study}/{dicom}.jpg", film)
        view = "LATERAL" if number % 17 == 0 else "" if number % 19 == 0 else film.view
        metadata.append(
            [
                dicom,
                subject,
                study,
                "CHEST (PA AND LAT)",
                view,
                48,
                48,
                21800506,
                213014.5,
                "CHEST",
                "",
                "Erect",
            ]
        )
    write_csv(root / "mimic-cxr-2.0.0-metadata.csv.gz", METADATA_HEADER, metadata)
    return films


def mimic(root: Path) -> dict[str, object]:
    """Metadata, split and CheXpert labels of MIMIC-CXR-JPG; one study has no labels."""
    films = _mimic_base(root)
    labels = list(LABEL_SETS["mimic"]["chexpert"].items())
    shares, marks = [], []
    for number, film in enumerate(films):
        dicom, subject, study = mimic_id(film)
        shares.append(
            [dicom, study, subject, "test" if film.test else ("train", "validate")[film.patient % 4 == 0]]
        )
        if number != 5:
            has = [positive(film, number, name) for name, _ in labels]
            row = [
                "1.0" if there else ("0.0", "", "-1.0")[min((number + i) % 5, 2)]
                for i, there in enumerate(has)
            ]
            marks.append([subject, study, "" if any(has) else "1.0", *(row if any(has) else [""] * len(row))])
    write_csv(root / "mimic-cxr-2.0.0-split.csv.gz", ["dicom_id", "study_id", "subject_id", "split"], shares)
    header = ["subject_id", "study_id", "No Finding", *(own for _, own in labels)]
    write_csv(root / "mimic-cxr-2.0.0-chexpert.csv.gz", header, marks)
    return {"source": "mimic", "uncertain": "positive", "unmentioned": "negative"}


def cxr_lt(label_set: str, folder: str, names: dict[str, str]) -> Callable[[Path], dict[str, object]]:
    """The label files of a CXR-LT release beside MIMIC-CXR-JPG's films; file -> split."""

    def write(root: Path) -> dict[str, object]:
        films = _mimic_base(root)
        columns = LABEL_SETS["mimic"][label_set]
        rows: dict[str, list[list[object]]] = {name: [] for name in names}
        for number, film in enumerate(films):
            dicom, subject, study = mimic_id(film)
            split = "test" if film.test else ("train", "development")[film.patient % 4 == 0]
            has = {name: positive(film, number, name) for name in columns if name != NO_FINDING}
            has[NO_FINDING] = not any(has.values())
            path = f"files/p{subject[:2]}/p{subject}/s{study}/{dicom}.jpg"
            row = [dicom, subject, study, film.view, "", path, *([split] if len(names) == 1 else [])]
            file = next((name for name, of in names.items() if of == split), next(iter(names)))
            rows[file].append([*row, *(int(has[name]) for name in columns)])
        keys = ["dicom_id", "subject_id", "study_id", "ViewPosition", "ViewCodeSequence_CodeMeaning", "fpath"]
        header = [*keys, *(["split"] if len(names) == 1 else []), *columns.values()]
        for name, content in rows.items():
            write_csv(root / folder / name, header, content)
        return {"source": "mimic", "labels": label_set}

    return write


PADCHEST_HEADER = (
    ",ImageID,ImageDir,StudyDate_DICOM,StudyID,PatientID,PatientBirth,PatientSex_DICOM,ViewPosition_DICOM,Projection,"
    "MethodProjection,Pediatric,Modality_DICOM,Manufacturer_DICOM,ReportID,Report,MethodLabel,Labels,Localizations"
)
# The words of PadChest that stand for a sign of the phantom.
PADCHEST_WORDS = {
    "Atelectasis": "laminar atelectasis", "Consolidation": "consolidation", "Infiltration": "infiltrates",
    "Pneumothorax": "pneumothorax", "Edema": "pulmonary edema", "Emphysema": "emphysema",
    "Fibrosis": "pulmonary fibrosis", "Effusion": " pleural effusion", "Pneumonia": "pneumonia",
    "Pleural_Thickening": "apical pleural thickening", "Cardiomegaly": "cardiomegaly", "Nodule": "multiple nodules",
    "Mass": "mass", "Hernia": "hiatal hernia",
}  # fmt: skip
REPORT = "dolor toracico, paciente GARCIA PEREZ , torax normal"


def padchest(root: Path) -> dict[str, object]:
    """The 160K table with its reports, and films in numbered folders; one film is labelled exclude, one not at all."""
    rows = []
    for number, film in enumerate(people()):
        name, folder = f"{film.patient:030d}_{film.follow_up:02d}.png", number % 3
        save_film(root / str(folder) / name, film)
        words = [PADCHEST_WORDS[finding] for finding in film.findings]
        words += [
            word for i, word in enumerate(("scoliosis", "pacemaker", "osteopenia")) if (number + i) % 8 == 0
        ]
        labels = repr(words or ["normal"])
        labels = {7: "['exclude']", 8: ""}.get(number, labels)
        projection = "L" if number % 13 == 0 else {"AP": "AP_horizontal"}.get(film.view, film.view)
        rows.append(
            [
                number,
                name,
                folder,
                20140915,
                f"s{film.patient}_{film.follow_up}",
                f"p{film.patient}",
                2014 - film.age,
                film.sex,
                "POSTEROANTERIOR",
                projection,
                "Manual review of DICOM fields",
                "No",
                "CR",
                "ImagingDynamics",
                4765777,
                REPORT,
                "Physician",
                labels,
                "['loc right']",
            ]
        )
    write_csv(root / "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv.gz", PADCHEST_HEADER, rows)
    return {"source": "padchest", "findings": [*PADCHEST_WORDS, "Scoliosis", "Support Devices"]}


def cxr_lt_2026(root: Path) -> dict[str, object]:
    """CXRLT_2026_training.csv and all films in images/, without PadChest's own table."""
    columns = LABEL_SETS["padchest"]["cxr_lt_2026"]
    rows = []
    for number, film in enumerate(people()):
        name = f"{film.patient:030d}_{film.follow_up:02d}.png"
        save_film(root / "images" / name, film)
        has = {finding: positive(film, number, finding) for finding in columns if finding != NO_FINDING}
        has[NO_FINDING] = not any(has.values())
        rows.append([name, 20140915, f"p{film.patient}", *(int(has[finding]) for finding in columns)])
    write_csv(
        root / "CXRLT_2026_training.csv", ["ImageID", "StudyDate_DICOM", "PatientID", *columns.values()], rows
    )
    return {"source": "padchest", "labels": "cxr_lt_2026"}


def vindr(root: Path) -> dict[str, object]:
    """Three readers of a training film, the third of whom overlooks everything; a consensus of a test film."""
    columns = LABEL_SETS["vindr"]["vindr"]
    rows: dict[str, list[list[object]]] = {"train": [], "test": []}
    for number, film in enumerate(people()):
        part = "test" if film.test else "train"
        image_id = f"{film.patient:016x}{film.follow_up:016x}"
        save_film(root / part / f"{image_id}.png", film)
        marks = [int(positive(film, number, finding)) for finding in columns]
        seen = [*marks, int(not any(marks))]
        if film.test:
            rows[part].append([image_id, *seen])
        else:
            rows[part] += [[image_id, reader, *seen] for reader in ("R9", "R10")]
            rows[part].append([image_id, "R8", *([0] * len(marks)), 1])
    header = [*columns.values(), "No finding"]
    write_csv(root / "annotations/image_labels_train.csv", ["image_id", "rad_id", *header], rows["train"])
    test = [re.sub("^Other diseases$", "Other disease", name) for name in header]
    write_csv(root / "annotations/image_labels_test.csv", ["image_id", *test], rows["test"])
    return {"source": "vindr", "views": ["PA"]}


def chestmnist(root: Path, name: str = "chestmnist_64.npz", compressed: bool = True) -> dict[str, object]:
    """medmnist's file: uint8 images and labels of three splits."""
    order = (
        "Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia", "Pneumothorax",
        "Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening", "Hernia",
    )  # fmt: skip
    arrays: dict[str, np.ndarray] = {}
    films = people()
    for split, chosen in (
        ("train", [film for film in films if not film.test and film.patient % 4]),
        ("val", [film for film in films if not film.test and not film.patient % 4]),
        ("test", [film for film in films if film.test]),
    ):
        arrays[f"{split}_images"] = np.stack([draw_film(film, 64, CONFIG.seed) for film in chosen])
        arrays[f"{split}_labels"] = np.array(
            [[f in film.findings for f in order] for film in chosen], np.uint8
        )
    (np.savez_compressed if compressed else np.savez)(root / name, **arrays)
    return {"source": "chestmnist"}


def own_table(root: Path) -> dict[str, object]:
    """A hospital's own CSV with semicolons, words of its own, non-ASCII ids, and columns that are nobody's business."""
    rows = []
    for number, film in enumerate(people()):
        name = f"röntgen/{film.patient:04d}-{film.follow_up}.png"
        save_film(root / name, film)
        labels = " + ".join(film.findings) or "o. B."
        rows.append(
            [
                f"Aufnahme-{number}",
                f"Ä{film.patient}",
                film.follow_up,
                name,
                {"M": "männlich", "F": "weiblich"}[film.sex],
                film.age,
                {"PA": "p.a.", "AP": "liegend"}[film.view],
                labels,
                "Müller; Erika",
                "1961-02-03",
            ]
        )
    header = "Aufnahme;Patient;Verlauf;Datei;Geschlecht;Alter;Projektion;Befund;Name;Geburtsdatum"
    stream = io.StringIO()
    csv.writer(stream, delimiter=";", lineterminator="\r\n").writerows([header.split(";"), *rows])
    (root / "befunde.csv").write_bytes(b"\xef\xbb\xbf" + stream.getvalue().encode())
    findings = {name: name for name in LABEL_SETS["nih"]["nih"]}
    table = {
        "file": "befunde.csv", "separator": ";", "image_id": "Aufnahme", "patient_id": "Patient", "path": "Datei",
        "follow_up": "Verlauf", "view": "Projektion", "views": {"p.a.": "PA", "liegend": "AP"}, "sex": "Geschlecht",
        "sexes": {"männlich": "M", "weiblich": "F"}, "age_years": "Alter", "labels": "Befund", "label_separator": " + ",
        "findings": findings, "no_finding": "o. B.",
    }  # fmt: skip
    return {"source": "table", "table": table}


# Name -> writer of the folder, which returns the section `data` of params.yaml less root.
SHIPPED: dict[str, Callable[[Path], dict[str, object]]] = {
    "chexpert": chexpert,
    "mimic": mimic,
    "cxr_lt_2023": cxr_lt(
        "cxr_lt_2023",
        "cxr-lt-2023",
        {"train.csv": "train", "development.csv": "development", "test.csv": "test"},
    ),
    "cxr_lt_2024_task1": cxr_lt(
        "cxr_lt_2024_task1",
        "cxr-lt-2024",
        {
            "train_labeled.csv": "train",
            "development_labeled_task1.csv": "development",
            "test_labeled_task1.csv": "test",
        },
    ),
    "cxr_lt_2024_task2": cxr_lt(
        "cxr_lt_2024_task2",
        "cxr-lt-2024",
        {
            "train_labeled.csv": "train",
            "development_labeled_task2.csv": "development",
            "test_labeled_task2.csv": "test",
        },
    ),
    "cxr_lt_2024_all": cxr_lt("cxr_lt_2024_all", "cxr-lt-2024", {"labels.csv": ""}),
    "padchest": padchest,
    "cxr_lt_2026": cxr_lt_2026,
    "vindr": vindr,
    "chestmnist": chestmnist,
    "table": own_table,
}
# Those whose owners share the films out.
OFFICIAL = {
    "chexpert",
    "mimic",
    "cxr_lt_2023",
    "cxr_lt_2024_task1",
    "cxr_lt_2024_task2",
    "cxr_lt_2024_all",
    "vindr",
    "chestmnist",
}


def write(name: str, root: Path) -> dict[str, object]:
    """Write the folder of a data set; returns the whole section `data`."""
    root.mkdir(parents=True, exist_ok=True)
    return {"missing_films": "fail", "views": ["PA", "AP"]} | SHIPPED[name](root) | {"root": str(root)}
