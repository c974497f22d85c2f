"""Sex, age, view, source and findings of the images of each split, without sealed test images."""

from dataclasses import fields, replace

import numpy as np
import pandas as pd

from ral.evaluation.rows import findings_of, floats
from ral.evaluation.table_rows import CharacteristicsRow, to_frame
from ral.evaluation.tables import rounded

UNKNOWN = "unknown"
SPLITS = ("train", "val", "test")
COLUMNS = tuple(column.name for column in fields(CharacteristicsRow))


def characteristics(studies: pd.DataFrame) -> pd.DataFrame:
    """characteristics.csv: a row per attribute, group and split, with the columns `COLUMNS`.

    images and patients are those of the group, of the number of images that could be in it, share the ratio.
    Attributes: all (every image); sex, view and source, whose unknown values are a group; age_years, with the
    median and the quartiles of the known ages; finding, whose group has the positives `of` the images with a
    known label. Attributes that the data does not have are left out.

    Args:
        studies: of `rows.read_studies`.
    """
    by_split = {split: studies[studies["split"] == split] for split in SPLITS}
    rows = [
        _row("all", "all", split, part, part["split"] == split, len(part)) for split, part in by_split.items()
    ]
    for attribute in ("sex", "age_years", "view", "source"):
        if attribute not in studies.columns:
            continue
        if attribute == "age_years":
            rows += [_ages(split, part) for split, part in by_split.items()]
            continue
        values = studies[attribute].astype("str").where(studies[attribute].notna(), UNKNOWN)
        rows += [
            _row(attribute, group, split, part, values[part.index] == group, len(part))
            for group in sorted(values.unique(), key=lambda name: (name == UNKNOWN, name))
            for split, part in by_split.items()
        ]
    for finding in findings_of(studies):
        for split, part in by_split.items():
            labels = pd.Series(floats(part[finding]), index=part.index)
            rows.append(_row("finding", finding, split, part, labels == 1, int(labels.notna().sum())))
    return rounded(to_frame(rows, COLUMNS), text=("attribute", "group", "split"))


def _row(
    attribute: str, group: str, split: str, images: pd.DataFrame, inside: "pd.Series[bool]", known: int
) -> CharacteristicsRow:
    """A group's row.

    Args:
        attribute: see `characteristics`.
        group: value of the attribute.
        split: the split.
        images: studies of the split.
        inside: mask of the group, in the order of `images`.
        known: number of images that could be in the group.
    """
    count = int(inside.sum())
    share = count / known if known else None
    patients = images.loc[inside, "patient_id"].nunique()
    return CharacteristicsRow(attribute, group, split, count, known, share, patients)


def _ages(split: str, images: pd.DataFrame) -> CharacteristicsRow:
    ages = images["age_years"].astype(np.float64)
    q1, median, q3 = ages.quantile([0.25, 0.5, 0.75]).to_list()
    row = _row("age_years", "known", split, images, ages.notna(), len(images))
    return replace(row, median=median, q1=q1, q3=q3)
