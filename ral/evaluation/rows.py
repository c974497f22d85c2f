"""Aligns the images of a split, their labels and their logits, and validates them."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ral.errors import UserError
from ral.files import read_json

Array = NDArray[Any]
Split = Literal["val", "test"]

# Columns of `studies` that are not findings: the required keys, and the optional attributes for the audit.
KEYS = ("image_id", "patient_id", "split")
ATTRIBUTES = ("sex", "age_years", "view", "source")


def read_studies(prepared: Path) -> pd.DataFrame:
    """Read images, findings and attributes of the prepared data (output of the step preprocess) for `align`.

    Raises:
        UserError: studies.parquet has no column for a finding of dataset.json, or none of `KEYS`.
    """
    findings = read_json(prepared / "dataset.json")["findings"]
    table = pd.read_parquet(prepared / "studies.parquet")
    missing = [name for name in (*KEYS, *findings) if name not in table.columns]
    if missing:
        raise UserError(
            f"{prepared / 'studies.parquet'} has no column {', '.join(missing)}. Run preprocess again."
        )
    return table[[*KEYS, *(name for name in ATTRIBUTES if name in table.columns), *findings]]


def findings_of(studies: pd.DataFrame) -> list[str]:
    """Names of the findings, in the order of the columns."""
    return [str(name) for name in studies.columns if name not in (*KEYS, *ATTRIBUTES)]


def align(
    studies: pd.DataFrame, logits: pd.DataFrame, split: Split, name: str = ""
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of one split sorted by image id, and the logits of its findings as float64 in the same order.

    Sorted, so that the row order of the tables does not affect the results. `name` names the logits in error messages.

    Raises:
        UserError: a table has a duplicate image_id; a patient_id is empty; a label is not 1, 0 or empty; the
            columns of the logits are not image_id and the findings in their order; an image of the split has no
            logits, or logits belong to no image of it; a logit is not finite.
    """
    findings, where = findings_of(studies), f"{name}: {split} logits".removeprefix(": ")
    _check_studies(studies, findings)
    _check_columns(logits, findings, where)
    _check_unique(logits, where)
    rows = studies[studies["split"] == split].sort_values("image_id", ignore_index=True)
    remedy = "Recompute the logits from these studies."
    missing = rows.loc[~rows["image_id"].isin(logits["image_id"]), "image_id"]
    if len(missing):
        raise UserError(f"{where}: {_describe(missing)} of the split {split} without logits. {remedy}")
    unknown = logits.loc[~logits["image_id"].isin(rows["image_id"]), "image_id"]
    if len(unknown):
        raise UserError(f"{where}: {_describe(unknown)} not in the split {split} of the studies. {remedy}")
    scores = logits.set_index("image_id").loc[rows["image_id"], findings].reset_index(drop=True)
    scores = scores.astype(np.float64)
    for name in findings:
        not_finite = rows.loc[~np.isfinite(scores[name].to_numpy()), "image_id"]
        if len(not_finite):
            raise UserError(
                f"{where}: {name} is NaN or infinite for {_describe(not_finite)}. The training diverged or "
                "the file is damaged: lower the learning rate or train again."
            )
    return rows, scores


def floats(column: "pd.Series[float]") -> Array:
    """A column of labels as float64, NaN for unknown."""
    return column.to_numpy(dtype=np.float64, na_value=np.nan)


def _check_studies(studies: pd.DataFrame, findings: list[str]) -> None:
    absent = [name for name in KEYS if name not in studies.columns]
    if absent:
        raise UserError(
            f"studies: the column {absent[0]} is missing. Needed: {', '.join(KEYS)} and the findings."
        )
    _check_unique(studies, "studies")
    without_patient = studies.loc[studies["patient_id"].isna(), "image_id"]
    if len(without_patient):
        raise UserError(
            f"studies: patient_id is empty for {_describe(without_patient)}. Add the patient of each image."
        )
    for name in findings:
        invalid = studies.loc[~(studies[name].isin([0, 1]) | studies[name].isna()), "image_id"]
        if len(invalid):
            raise UserError(
                f"studies: {name} is not 1, 0 or empty for {_describe(invalid)}. Correct the labels."
            )


def _check_columns(logits: pd.DataFrame, findings: list[str], where: str) -> None:
    expected, actual = ["image_id", *findings], [str(name) for name in logits.columns]
    if actual == expected:
        return
    missing = [name for name in expected if name not in actual]
    extra = [name for name in actual if name not in expected]
    problems = [f"missing: {', '.join(missing)}"] * bool(missing) + [
        f"unexpected: {', '.join(extra)}"
    ] * bool(extra)
    raise UserError(
        f"{where}: the columns do not match the studies ({'; '.join(problems) or 'different order'}). "
        f"Expected {', '.join(expected)}; found {', '.join(actual)}. Train again on these studies."
    )


def _check_unique(table: pd.DataFrame, where: str) -> None:
    duplicates = table.loc[table["image_id"].duplicated(), "image_id"]
    if len(duplicates):
        raise UserError(f"{where}: {_describe(duplicates)}: duplicate image_id. Keep one row per image.")


def _describe(images: "pd.Series[str]") -> str:
    """Number of images and the names of the first three."""
    names = ", ".join(str(name) for name in images.head(3))
    return f"{len(images)} image{'s' * (len(images) > 1)} ({names}{', ...' if len(images) > 3 else ''})"
