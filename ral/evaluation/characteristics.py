"""Sex, age, view, source and findings of the images of each split, without sealed test images."""

from typing import Any

import numpy as np
import pandas as pd

from ral.evaluation.rows import findings_of, floats
from ral.evaluation.tables import rounded

UNKNOWN = "unknown"
SPLITS = ("train", "val", "test")
COLUMNS = ("attribute", "group", "split", "images", "of", "share", "patients", "median", "q1", "q3")


def characteristics(studies: pd.DataFrame) -> pd.DataFrame:
    """characteristics.csv: a row per attribute, group and split, with the columns `COLUMNS`.

    images and patients are those of the group, of the number of images that could be in it, share the ratio.
    Attributes: all (every image); sex, view and source, whose unknown values are a group; age_years, with the
    median and the quartiles of the known ages; finding, whose group has the positives `of` the images with a
    known label. Attributes that the data does not have are left out.

    Args:
        studies: of `rows.read_studies`.
    """
    rows: list[dict[str, Any]] = []
    by_split = {split: studies[studies["split"] == split] for split in SPLITS}

    def add(
        attribute: str, group: str, split: str, inside: "pd.Series[bool]", known: int, **more: float
    ) -> None:
        images = int(inside.sum())
        rows.append(
            {
                "attribute": attribute,
                "group": group,
                "split": split,
                "images": images,
                "of": known,
                "share": images / known if known else None,
                "patients": by_split[split].loc[inside, "patient_id"].nunique(),
                **more,
            }
        )

    for split, part in by_split.items():
        add("all", "all", split, part["split"] == split, len(part))
    for attribute in ("sex", "age_years", "view", "source"):
        if attribute not in studies.columns:
            continue
        if attribute == "age_years":
            for split, part in by_split.items():
                ages = part[attribute].astype(np.float64)
                quartiles = ages.quantile([0.25, 0.5, 0.75]).to_list()
                statistics = dict(zip(("q1", "median", "q3"), quartiles, strict=True))
                add(attribute, "known", split, ages.notna(), len(part), **statistics)
            continue
        values = studies[attribute].astype("str").where(studies[attribute].notna(), UNKNOWN)
        for group in sorted(values.unique(), key=lambda name: (name == UNKNOWN, name)):
            for split, part in by_split.items():
                add(attribute, group, split, values[part.index] == group, len(part))
    for finding in findings_of(studies):
        for split, part in by_split.items():
            labels = pd.Series(floats(part[finding]), index=part.index)
            add("finding", finding, split, labels == 1, int(labels.notna().sum()))
    return rounded(pd.DataFrame(rows, columns=list(COLUMNS)), text=("attribute", "group", "split"))
