"""MIMIC-CXR-JPG 2.x (Johnson et al., 2019) from PhysioNet, with its own labels or those of CXR-LT 2023 and 2024.

`data.root` has mimic-cxr-2.0.0-metadata.csv.gz (and -split, -chexpert for the label set chexpert), files/p10/…,
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
# Label set -> folder, and its files with their split (None: the file has a column `split`).
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
# DICOM view positions; others (AP AXIAL, LAO, SWIMMERS, …) are neither frontal nor lateral.
VIEWS = {"PA": "PA", "AP": "AP", "LATERAL": "LATERAL", "LL": "LATERAL"}


class Reader(Source):
    """MIMIC-CXR-JPG has neither sex nor age; its dates are shifted and not read."""

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
                # In the CXR-LT sets No Finding (2024: Normal) is itself a class.
                no_finding=self.label_set.get(NO_FINDING, "No Finding"),
            ),
            contradiction="warning",
        )

    def tables(self) -> list[Path]:
        metadata = find_table(self.root, _either("metadata"))
        if self.set == "chexpert":
            return [metadata, *(find_table(self.root, _either(name)) for name in ("split", "chexpert"))]
        folder, names = CXR_LT[self.set]
        files = [path for name in names if (path := self._in(folder, name)).is_file()]
        if not files:
            raise UserError(
                f"{self.root / folder} has none of {', '.join(names)}. Put that folder of the CXR-LT release "
                "there, or choose another data.labels."
            )
        return [metadata, *files]

    def _in(self, folder: str, name: str) -> Path:
        return self.root / folder / name if (self.root / folder).is_dir() else self.root / name

    def read(self) -> pd.DataFrame:
        metadata, *others = self.tables()
        images = read_text(metadata, ("dicom_id", "subject_id", "study_id", "ViewPosition"))
        rows = self._chexpert(images, *others) if self.set == "chexpert" else self._cxr_lt(images, others)
        patient, study, image = rows["subject_id"], rows["study_id"], rows["dicom_id"]
        path = "files/p" + patient.str.slice(0, 2) + "/p" + patient + "/s" + study + "/" + image + ".jpg"
        return rows.assign(file=path, view=rows["ViewPosition"].map(VIEWS).fillna("OTHER"))

    def _chexpert(self, images: pd.DataFrame, split: Path, labels: Path) -> pd.DataFrame:
        """Images with PhysioNet's split and the labels of their study; without labels, all are unmentioned."""
        columns = ("No Finding", *self.label_set.values())
        splits = read_text(split, ("dicom_id", "split")).drop(columns="row")
        study_labels = read_text(labels, ("subject_id", "study_id", *columns)).drop(columns="row")
        _check_unique(splits, ["dicom_id"], split)
        _check_unique(study_labels, ["subject_id", "study_id"], labels)
        rows = images.merge(splits, on="dicom_id", how="left").merge(
            study_labels, on=["subject_id", "study_id"], how="left"
        )
        rows[list(columns)] = rows[list(columns)].fillna("")
        return rows.assign(official=_translated(rows["split"]))

    def _cxr_lt(self, images: pd.DataFrame, files: list[Path]) -> pd.DataFrame:
        """Images of a CXR-LT release with its labels and split; patient, study and view come from MIMIC."""
        columns, names = tuple(self.label_set.values()), CXR_LT[self.set][1]
        parts = []
        for path in files:
            split = names[path.name]
            extra = () if split else ("split",)
            part = read_text(path, ("dicom_id", *extra, *columns))
            parts.append(
                part.assign(official=split or _translated(part["split"])).drop(
                    columns="split", errors="ignore"
                )
            )
        _check_unique(images, ["dicom_id"], self.tables()[0])
        rows = pd.concat(parts, ignore_index=True).merge(
            images.drop(columns="row"), on="dicom_id", how="left"
        )
        unknown = rows["subject_id"].isna()
        if unknown.any():
            raise UserError(
                f"{self.root}: {unknown.sum()} images of the CXR-LT files are not in the metadata table. The "
                f"first: {rows.loc[unknown, 'dicom_id'].iloc[0]}. Both must be of the same MIMIC-CXR-JPG release."
            )
        return rows


def _translated(split: pd.Series) -> pd.Series:
    """Translate official split names; unknown names are kept for validation to report."""
    return split.map(SPLITS).fillna(split)


def _either(name: str) -> tuple[str, str]:
    """File names of a table, compressed and unpacked."""
    return _NAME.format(name) + ".gz", _NAME.format(name)


def _check_unique(table: pd.DataFrame, keys: list[str], path: Path) -> None:
    """Check that keys are unique, so that a join does not multiply images."""
    duplicated = table.duplicated(keys)
    if duplicated.any():
        raise UserError(
            f"{path}: {' '.join(table.loc[duplicated, keys].iloc[0])} occurs twice. Keep one row."
        )
