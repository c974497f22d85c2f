"""Small data folders in the layouts of the data sets' owners; people and labels are made up, images are phantoms.

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
from ral.labels import LABEL_SETS, NO_FINDING
from ral.phantom.population import PhantomImage, draw_population
from ral.phantom.signs import draw_image

CONFIG = PhantomConfig(images=240, size=48, floor=0.05, seed=3)


def people(images: int = CONFIG.images) -> list[PhantomImage]:
    """Rows of made-up patients."""
    return draw_population(CONFIG.model_copy(update={"images": images}))


def save_image(path: Path, image: PhantomImage) -> None:
    """Draw an image of 48 pixels; the file's ending says how it is stored."""
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"quality": 97} if path.suffix == ".jpg" else {}
    Image.fromarray(draw_image(image, CONFIG.size, CONFIG.seed)).save(path, **options)


def write_csv(path: Path, header: Sequence[str] | str, rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV, gzipped where its name says so."""
    stream = io.StringIO()
    names = header.split(",") if isinstance(header, str) else header
    csv.writer(stream, lineterminator="\n").writerows([names, *rows])
    path.parent.mkdir(parents=True, exist_ok=True)
    content = stream.getvalue().encode()
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)


def positive(image: PhantomImage, number: int, finding: str) -> bool:
    """Whether a made-up image has a finding: as drawn; where the phantom has no such sign, by number and name."""
    if finding in LABEL_SETS["nih"]["nih"]:
        return finding in image.findings
    return number % 3 == 1 and (number + zlib.crc32(finding.encode())) % 4 == 0


CHEXPERT_HEADER = (
    "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung Lesion,"
    "Edema,Consolidation,Pneumonia,Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,Support Devices"
)


def chexpert(root: Path) -> dict[str, object]:
    """train.csv and valid.csv; every eleventh image is a lateral, labels are 1.0, 0.0, -1.0 or empty."""
    labels = list(LABEL_SETS["chexpert"]["chexpert"])
    rows: dict[str, list[list[object]]] = {"train": [], "valid": []}
    for number, image in enumerate(people()):
        part = "valid" if image.test else "train"
        lateral = number % 11 == 0
        name = f"{part}/patient{image.patient:05d}/study{image.follow_up + 1}/view1_{'lateral' if lateral else 'frontal'}.jpg"
        save_image(root / name, image)
        has = [positive(image, number, label) for label in labels]
        others = ("0.0", "", "-1.0")
        marks = ["1.0" if there else others[min((number + i) % 7, 2)] for i, there in enumerate(has)]
        healthy = not any(has)
        if healthy:
            marks = [""] * len(marks)
        sex = "Unknown" if number == 3 else {"M": "Male", "F": "Female"}[image.sex]
        rows[part].append(
            [
                f"CheXpert-v1.0-small/{name}",
                sex,
                image.age,
                "Lateral" if lateral else "Frontal",
                "" if lateral else image.view,
                "1.0" if healthy else "",
                *marks,
            ]
        )
    for part, content in rows.items():
        write_csv(root / f"{part}.csv", CHEXPERT_HEADER, content)
    return {"source": "chexpert", "views": ["PA", "AP"], "uncertain": "negative", "unmentioned": "negative"}


METADATA_HEADER = (
    "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,ColumnLabels,StudyDate,StudyTime,"
    "ProcedureCodeSequence_CodeMeaning,ViewCodeSequence_CodeMeaning,PatientOrientationCodeSequence_CodeMeaning"
)


def mimic_id(image: PhantomImage) -> tuple[str, str, str]:
    """dicom_id, subject_id, study_id."""
    dicom = f"{image.patient:08x}-{image.follow_up:08x}-0000abcd-12345678-9abcdef0"
    return dicom, str(10_000_000 + image.patient), str(50_000_000 + image.patient * 100 + image.follow_up)


def _mimic_base(root: Path) -> list[PhantomImage]:
    images = people()
    metadata = []
    for number, image in enumerate(images):
        dicom, subject, study = mimic_id(image)
        save_image(root / f"files/p{subject[:2]}/p{subject}/s{study}/{dicom}.jpg", image)
        view = "LATERAL" if number % 17 == 0 else "" if number % 19 == 0 else image.view
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
    return images


def mimic(root: Path) -> dict[str, object]:
    """Metadata, split and CheXpert labels of MIMIC-CXR-JPG; one study has no labels."""
    images = _mimic_base(root)
    labels = list(LABEL_SETS["mimic"]["chexpert"].items())
    shares, marks = [], []
    for number, image in enumerate(images):
        dicom, subject, study = mimic_id(image)
        shares.append(
            [dicom, study, subject, "test" if image.test else ("train", "validate")[image.patient % 4 == 0]]
        )
        if number != 5:
            has = [positive(image, number, name) for name, _ in labels]
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
    """The label files of a CXR-LT release beside MIMIC-CXR-JPG's images; file -> split."""

    def write(root: Path) -> dict[str, object]:
        images = _mimic_base(root)
        columns = LABEL_SETS["mimic"][label_set]
        rows: dict[str, list[list[object]]] = {name: [] for name in names}
        for number, image in enumerate(images):
            dicom, subject, study = mimic_id(image)
            split = "test" if image.test else ("train", "development")[image.patient % 4 == 0]
            has = {name: positive(image, number, name) for name in columns if name != NO_FINDING}
            has[NO_FINDING] = not any(has.values())
            path = f"files/p{subject[:2]}/p{subject}/s{study}/{dicom}.jpg"
            row = [dicom, subject, study, image.view, "", path, *([split] if len(names) == 1 else [])]
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
    """The 160K table with its reports, and images in numbered folders; one image is labelled exclude, one not
    at all.
    """
    rows = []
    for number, image in enumerate(people()):
        name, folder = f"{image.patient:030d}_{image.follow_up:02d}.png", number % 3
        save_image(root / str(folder) / name, image)
        words = [PADCHEST_WORDS[finding] for finding in image.findings]
        words += [
            word for i, word in enumerate(("scoliosis", "pacemaker", "osteopenia")) if (number + i) % 8 == 0
        ]
        labels = repr(words or ["normal"])
        labels = {7: "['exclude']", 8: ""}.get(number, labels)
        projection = "L" if number % 13 == 0 else {"AP": "AP_horizontal"}.get(image.view, image.view)
        rows.append(
            [
                number,
                name,
                folder,
                20140915,
                f"s{image.patient}_{image.follow_up}",
                f"p{image.patient}",
                2014 - image.age,
                image.sex,
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
    """CXRLT_2026_training.csv and all images in images/, without PadChest's own table."""
    columns = LABEL_SETS["padchest"]["cxr_lt_2026"]
    rows = []
    for number, image in enumerate(people()):
        name = f"{image.patient:030d}_{image.follow_up:02d}.png"
        save_image(root / "images" / name, image)
        has = {finding: positive(image, number, finding) for finding in columns if finding != NO_FINDING}
        has[NO_FINDING] = not any(has.values())
        rows.append([name, 20140915, f"p{image.patient}", *(int(has[finding]) for finding in columns)])
    write_csv(
        root / "CXRLT_2026_training.csv", ["ImageID", "StudyDate_DICOM", "PatientID", *columns.values()], rows
    )
    return {"source": "padchest", "labels": "cxr_lt_2026"}


def vindr(root: Path) -> dict[str, object]:
    """Three readers of a training image, the third of whom overlooks everything; a consensus of a test image."""
    columns = LABEL_SETS["vindr"]["vindr"]
    rows: dict[str, list[list[object]]] = {"train": [], "test": []}
    for number, image in enumerate(people()):
        part = "test" if image.test else "train"
        image_id = f"{image.patient:016x}{image.follow_up:016x}"
        save_image(root / part / f"{image_id}.png", image)
        marks = [int(positive(image, number, finding)) for finding in columns]
        seen = [*marks, int(not any(marks))]
        if image.test:
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
    images = people()
    for split, chosen in (
        ("train", [image for image in images if not image.test and image.patient % 4]),
        ("val", [image for image in images if not image.test and not image.patient % 4]),
        ("test", [image for image in images if image.test]),
    ):
        arrays[f"{split}_images"] = np.stack([draw_image(image, 64, CONFIG.seed) for image in chosen])
        arrays[f"{split}_labels"] = np.array(
            [[f in image.findings for f in order] for image in chosen], np.uint8
        )
    (np.savez_compressed if compressed else np.savez)(root / name, **arrays)
    return {"source": "chestmnist"}


def own_table(root: Path) -> dict[str, object]:
    """A hospital's own CSV with semicolons, words of its own, non-ASCII ids, and columns that are nobody's business."""
    rows = []
    for number, image in enumerate(people()):
        name = f"röntgen/{image.patient:04d}-{image.follow_up}.png"
        save_image(root / name, image)
        labels = " + ".join(image.findings) or "o. B."
        rows.append(
            [
                f"Aufnahme-{number}",
                f"Ä{image.patient}",
                image.follow_up,
                name,
                {"M": "männlich", "F": "weiblich"}[image.sex],
                image.age,
                {"PA": "p.a.", "AP": "liegend"}[image.view],
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
# Those whose owners share the images out.
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
    return {"missing_images": "fail", "views": ["PA", "AP"]} | SHIPPED[name](root) | {"root": str(root)}
