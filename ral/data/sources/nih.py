"""NIH ChestX-ray14 (Wang et al., CVPR 2017) as NIH ships it: Data_Entry_2017*.csv and two official lists."""

import csv
from pathlib import Path

import numpy as np
import pandas as pd

from ral.errors import UserError
from ral.labels import NIH_FINDINGS, NO_FINDING

TABLES = ("Data_Entry_2017.csv", "Data_Entry_2017_v2020.csv")
TRAIN_LIST, TEST_LIST = "train_val_list.txt", "test_list.txt"

# The header's last two names hold commas of their own (`OriginalImage[Width,Height]`), so that it splits in
# eleven like the rows do. The columns used stand before them.
COLUMNS = (
    "Image Index",
    "Finding Labels",
    "Follow-up #",
    "Patient ID",
    "Patient Age",
    "Patient Gender",
    "View Position",
)
VOCABULARY = (*NIH_FINDINGS, NO_FINDING)
# NIH's films are all frontal; tables merged from elsewhere may bring laterals.
VIEWS = ("PA", "AP", "LATERAL")

# Ages above this are typing errors in the table (the 2017 edition has 414); they become unknown.
OLDEST = 120


def table_path(root: Path) -> Path:
    """The label table in `root`.

    Raises:
        UserError: the folder or the table is missing, or there are two tables.
    """
    if not root.is_dir():
        raise UserError(
            f"The data folder {root} does not exist. Set data.root in params.yaml to your folder."
        )
    found = [root / name for name in TABLES if (root / name).is_file()]
    if not found:
        raise UserError(f"{root} has no label table. Put {' or '.join(TABLES)} there, or correct data.root.")
    if len(found) > 1:
        raise UserError(f"{root} has {' and '.join(p.name for p in found)}: keep one of them.")
    return found[0]


def check_header(path: Path) -> None:
    """Check that a label table has the columns used and at least one row.

    Raises:
        UserError: a column is absent, or the table is empty or not text.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            rows = csv.reader(stream)
            header = next(rows, [])
            first = next(rows, None)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error}). Save it as CSV in UTF-8.") from None
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        raise UserError(
            f"{path} lacks the column `{missing[0]}`. Found: {', '.join(header) or 'nothing'}. "
            f"Needed: {', '.join(COLUMNS)}."
        )
    if first is None:
        raise UserError(f"{path} has a header but no rows: download it again.")


def read_raw(path: Path) -> pd.DataFrame:
    """The label table as text, one row per film, only the columns used.

    Raises:
        UserError: see `check_header`; or a row has another number of fields.
    """
    check_header(path)
    try:
        return pd.read_csv(path, **read_options())
    except pd.errors.ParserError as error:
        raise UserError(f"{path} is not a regular CSV table: {error}. Mend that row.") from None


def read_options() -> dict:
    """Arguments under which pandas (or Dask, block by block) reads the label table."""
    return {
        "usecols": list(COLUMNS),
        "dtype": str,
        "keep_default_na": False,
        "index_col": False,
        "encoding": "utf-8-sig",
    }


def to_studies(raw: pd.DataFrame) -> pd.DataFrame:
    """The pipeline's table from rows of the label table that passed validation.

    Returns:
        image_id, patient_id, study_id, view, sex, age_years (null where unknown), and one float32 column per
        finding (1 present, 0 absent).
    """
    age = pd.to_numeric(raw["Patient Age"], errors="coerce").astype("float32")
    studies = pd.DataFrame(
        {
            "image_id": raw["Image Index"],
            "patient_id": raw["Patient ID"],
            "study_id": raw["Patient ID"] + "_" + raw["Follow-up #"],
            "view": raw["View Position"],
            "sex": raw["Patient Gender"],
            "age_years": age.where(age.le(OLDEST)),
        }
    )
    # Few distinct label texts stand for very many rows: split each once, then look rows up by code.
    codes, texts = pd.factorize(raw["Finding Labels"])
    split = [set(text.split("|")) for text in texts]
    for finding in NIH_FINDINGS:
        present = np.fromiter((finding in labels for labels in split), np.float32, len(split))
        studies[finding] = present[codes]
    return studies


def read_lists(root: Path) -> tuple[set[str], set[str]]:
    """Image ids of the official (training and validation, test) lists.

    Raises:
        UserError: a list is missing or empty, or a film stands on both.
    """
    lists = []
    for name in (TRAIN_LIST, TEST_LIST):
        path = root / name
        if not path.is_file():
            raise UserError(f"{path} is missing. Put NIH's list there, or set split.method to hash.")
        ids = set(path.read_text(encoding="utf-8-sig").split())
        if not ids:
            raise UserError(f"{path} is empty. Download it again, or set split.method to hash.")
        lists.append(ids)
    both = lists[0] & lists[1]
    if both:
        raise UserError(f"{root}: {min(both)} stands on both {TRAIN_LIST} and {TEST_LIST}. Keep it on one.")
    return lists[0], lists[1]
