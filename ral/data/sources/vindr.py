"""VinDr-CXR 1.0 (Nguyen et al., 2022) from PhysioNet: one row per image and reader, DICOM images by image id.

`data.root` has annotations/image_labels_train.csv and image_labels_test.csv (or both directly), and train/ and
test/ with <image_id>.dicom; images converted to .png or .jpg under the same ids are accepted too.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from ral.data.sources.base import LABEL_VALUES, ColumnLabels, Layout, Source
from ral.data.sources.text import check_columns, read_header, read_text
from ral.errors import UserError
from ral.labels import LABEL_SETS

# Table -> folder of its images and official split. Three readers read each training image; five agreed on
# each test image.
TABLES = {"image_labels_train.csv": "train", "image_labels_test.csv": "test"}
NO_FINDING_COLUMN = "No finding"
# Spelling in the test table -> spelling in the training table.
SPELLINGS = {"Other disease": "Other diseases"}
ENDINGS = (".dicom", ".dcm", ".png", ".jpg", ".jpeg")


class Reader(Source):
    """There are no patient ids: each image counts as one patient, and validation warns about it."""

    layout = Layout(
        image="image_id",
        patient="image_id",
        path="file",
        split="official",
        only_view="PA",
        labels=ColumnLabels(LABEL_SETS["vindr"]["vindr"], no_finding=NO_FINDING_COLUMN),
        contradiction="warning",
        patients_known=False,
    )

    def tables(self) -> list[Path]:
        folder = self.root / "annotations" if (self.root / "annotations").is_dir() else self.root
        tables = [folder / name for name in TABLES if (folder / name).is_file()]
        if not tables:
            raise UserError(
                f"{folder} has no label table. Put {' and '.join(TABLES)} there, or correct data.root."
            )
        return tables

    def read(self) -> pd.DataFrame:
        columns = [NO_FINDING_COLUMN, *self.label_set.values()]
        parts = []
        for path in self.tables():
            votes = _read_votes(path, columns)
            split = TABLES[path.name]
            names = _image_names(self.root / split)
            merged = merge_readers(votes, columns, self.config.readers)
            stems = merged["image_id"]
            file = split + "/" + stems.map(names).fillna(stems + ENDINGS[0])
            parts.append(merged.assign(official=split, file=file))
        return pd.concat(parts, ignore_index=True)


def _read_votes(path: Path, columns: list[str]) -> pd.DataFrame:
    """Read one table with the spelling of the training table."""
    original_names = {SPELLINGS.get(name, name): name for name in read_header(path)}
    check_columns(path, ["image_id", *columns], list(original_names))
    reader = ["rad_id"] if "rad_id" in original_names else []
    votes = read_text(path, ["image_id", *reader, *(original_names[name] for name in columns)]).rename(
        columns=SPELLINGS
    )
    duplicated = votes.duplicated(["image_id", *reader])
    if duplicated.any():
        row = votes[duplicated].iloc[0]
        raise UserError(f"{path}, row {row['row']}: image {row['image_id']} occurs twice. Keep one row.")
    return votes


def merge_readers(votes: pd.DataFrame, columns: list[str], rule: str) -> pd.DataFrame:
    """Merge one row per image and reader into one row per image.

    Args:
        votes: image_id, row, and the label columns as text.
        columns: the label columns, "No finding" first.
        rule: majority (more than half of the readers) or any. "No finding" needs the majority, or all readers.

    Returns:
        image_id, row (of the first reader) and the columns as "1" or "0", in the order of the images. Invalid label
        texts are kept for validation to report.
    """
    codes, image_ids = pd.factorize(votes["image_id"])
    readers = np.bincount(codes)
    merged: dict[str, object] = {"image_id": image_ids}
    for column in columns:
        present = votes[column].isin([text for text, word in LABEL_VALUES.items() if word == "present"])
        votes_present = np.bincount(codes, weights=present)
        if rule == "majority":
            positive = 2 * votes_present > readers
        else:
            positive = votes_present == readers if column == NO_FINDING_COLUMN else votes_present > 0
        texts = np.where(positive, "1", "0").astype(object)
        for row in np.flatnonzero(~votes[column].isin(LABEL_VALUES).to_numpy()):
            texts[codes[row]] = votes[column].iloc[row]
        merged[column] = pd.Series(texts, dtype="str")
    return pd.DataFrame(merged).assign(row=votes["row"].to_numpy()[np.unique(codes, return_index=True)[1]])


def _image_names(folder: Path) -> dict[str, str]:
    """Image id -> file name of the images in a folder."""
    if not folder.is_dir():
        return {}
    return {path.stem: path.name for path in sorted(folder.iterdir()) if path.suffix.lower() in ENDINGS}
