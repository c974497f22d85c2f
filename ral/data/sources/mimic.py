"""MIMIC-CXR-JPG 2.x (Johnson et al., 2019) as PhysioNet ships it, with its own labels or those of CXR-LT 2023 and 2024.

`data.root` holds mimic-cxr-2.0.0-metadata.csv.gz (and -split, -chexpert for the label set chexpert), files/p10/…,
and for the CXR-LT label sets the folder cxr-lt-2023/ or cxr-lt-2024/ of that release.
"""

from pathlib import Path

import pandas as pd

from ral.config.data import DataConfig
from ral.data.sources.base import ColumnLabels, Layout, Source
from ral.data.sources.text import find_table, read_text
from ral.errors import UserError
from ral.labels import NO_FINDING

_NAME = "mimic-cxr-2.0.0-{}.csv"
SPLITS = {"train": "train", "validate": "val", "development": "val", "test": "test"}
# Label set -> folder, and its files with the split they stand for (None: the file has a column `split`).
CXR_LT: dict[str, tuple[str, dict[str, str | None]]] = {
    "cxr_lt_2023": ("cxr-lt-2023", {"train.csv": "train", "development.csv": "val", "test.csv": "test"}),
    "cxr_lt_2024_task1": (
        "cxr-lt-2024",
        {
            "train_labeled.csv": "train",
            "development_labeled_task1.csv": "val",
            "test_labeled_task1.csv": "test",
        },
    ),
    "cxr_lt_2024_task2": (
        "cxr-lt-2024",
        {
            "train_labeled.csv": "train",
            "development_labeled_task2.csv": "val",
            "test_labeled_task2.csv": "test",
        },
    ),
    "cxr_lt_2024_all": ("cxr-lt-2024", {"labels.csv": None}),
}
# DICOM view positions; others (AP AXIAL, LAO, SWIMMERS, …) are no usual frontal or lateral view.
VIEWS = {"PA": "PA", "AP": "AP", "LATERAL": "LATERAL", "LL": "LATERAL"}


class Reader(Source):
    """Neither sex nor age is in MIMIC-CXR-JPG; its dates are shifted, and not read."""

    def __init__(self, config: DataConfig) -> None:
        super().__init__(config)
        self.set = config.labels or "chexpert"
        self.layout = Layout(
            image="dicom_id",
            patient="subject_id",
            study="study_id",
            path="file",
            split="official",
            view="view",
            labels=ColumnLabels(
                self.label_set,
                # Of the CXR-LT sets No Finding (2024: Normal) is itself a class.
                no_finding=self.label_set.get(NO_FINDING, "No Finding"),
            ),
            contradiction="warning",
        )

    def tables(self) -> list[Path]:
        metadata = find_table(self.root, _either("metadata"))
        if self.set == "chexpert":
            return [metadata, *(find_table(self.root, _either(name)) for name in ("split", "chexpert"))]
        folder, names = CXR_LT[self.set]
        found = [path for name in names if (path := self._in(folder, name)).is_file()]
        if not found:
            raise UserError(
                f"{self.root / folder} has none of {', '.join(names)}. Put that folder of the CXR-LT release "
                "there, or choose another data.labels."
            )
        return [metadata, *found]

    def _in(self, folder: str, name: str) -> Path:
        return self.root / folder / name if (self.root / folder).is_dir() else self.root / name

    def read(self) -> pd.DataFrame:
        metadata, *others = self.tables()
        images = read_text(metadata, ("dicom_id", "subject_id", "study_id", "ViewPosition"))
        rows = self._own(images, *others) if self.set == "chexpert" else self._cxr_lt(images, others)
        patient, study, image = rows["subject_id"], rows["study_id"], rows["dicom_id"]
        path = "files/p" + patient.str.slice(0, 2) + "/p" + patient + "/s" + study + "/" + image + ".jpg"
        return rows.assign(file=path, view=rows["ViewPosition"].map(VIEWS).fillna("OTHER"))

    def _own(self, images: pd.DataFrame, split: Path, labels: Path) -> pd.DataFrame:
        """Images with PhysioNet's split and the study's labels; a study without labels has them unmentioned."""
        columns = ("No Finding", *self.label_set.values())
        shares = read_text(split, ("dicom_id", "split")).drop(columns="row")
        marks = read_text(labels, ("subject_id", "study_id", *columns)).drop(columns="row")
        _once(shares, ["dicom_id"], split)
        _once(marks, ["subject_id", "study_id"], labels)
        rows = images.merge(shares, on="dicom_id", how="left").merge(
            marks, on=["subject_id", "study_id"], how="left"
        )
        rows[list(columns)] = rows[list(columns)].fillna("")
        return rows.assign(official=_translated(rows["split"]))

    def _cxr_lt(self, images: pd.DataFrame, files: list[Path]) -> pd.DataFrame:
        """The images of a CXR-LT release with its labels and split; patient, study and view are MIMIC's."""
        columns, names = tuple(self.label_set.values()), CXR_LT[self.set][1]
        parts = []
        for path in files:
            share = names[path.name]
            extra = () if share else ("split",)
            part = read_text(path, ("dicom_id", *extra, *columns))
            parts.append(
                part.assign(official=share or _translated(part["split"])).drop(
                    columns="split", errors="ignore"
                )
            )
        _once(images, ["dicom_id"], self.tables()[0])
        rows = pd.concat(parts, ignore_index=True).merge(
            images.drop(columns="row"), on="dicom_id", how="left"
        )
        unknown = rows["subject_id"].isna()
        if unknown.any():
            raise UserError(
                f"{self.root}: {unknown.sum()} images of the CXR-LT files are not in the metadata table, the first "
                f"is {rows.loc[unknown, 'dicom_id'].iloc[0]}. Both must be of the same MIMIC-CXR-JPG release."
            )
        return rows


def _translated(split: pd.Series) -> pd.Series:
    """The owners' words for the splits in ours; an unknown word stays, for validation to find."""
    return split.map(SPLITS).fillna(split)


def _either(name: str) -> tuple[str, str]:
    """A table's name as shipped, and unpacked."""
    return _NAME.format(name) + ".gz", _NAME.format(name)


def _once(table: pd.DataFrame, keys: list[str], path: Path) -> None:
    """A join must not multiply images."""
    twice = table.duplicated(keys)
    if twice.any():
        raise UserError(
            f"{path}: {' '.join(table.loc[twice, keys].iloc[0])} stands there twice. Keep one row."
        )
