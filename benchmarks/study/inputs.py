"""What the statistics of the study read: the table of runs, the labels and folds, and the logits of each run."""

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ral.config.evaluate import EvaluateConfig
from ral.errors import UserError
from ral.files import sha256
from ral.labels import Tier, tier

Array = NDArray[Any]

# Columns of runs.csv, with the type that each is read as.
COLUMNS: dict[str, str] = {
    "run": "str", "stage": "str", "arm": "str", "fold": "int64", "seed": "int64", "learning_rate": "float64",
    "backbone": "str", "parameters": "int64", "image_size": "int64", "epochs": "int64", "batch_size": "int64",
    "precision": "str", "thin": "float64", "train_images": "int64", "selection_images": "int64",
    "test_images": "int64", "best_epoch": "int64", "selection_macro_ap": "float64",
    "selection_macro_auroc": "float64", "test_macro_ap": "float64", "test_macro_auroc": "float64",
    "seconds": "float64", "images_per_second": "float64", "device": "str", "torch": "str", "commit": "str",
    "data": "str", "logits": "str",
}  # fmt: skip

# Value of `StudyData.fold` for the selection set.
SELECTION = -1


@dataclass(frozen=True)
class StudyData:
    """The images of the study, by row."""

    patients: Array
    """Patient id, text [images]."""
    targets: Array
    """1, 0 or NaN, float64 [images, findings]."""
    fold: Array
    """Fold in which the image is tested; `SELECTION` for the selection set [images]."""
    findings: tuple[str, ...]
    tiers: dict[str, Tier]
    """By the prevalence in all folds: each fold trains on the others."""
    positives: dict[str, int]
    """Positive images in all folds."""

    @property
    def folds(self) -> tuple[int, ...]:
        """The folds, in order."""
        return tuple(int(fold) for fold in np.unique(self.fold) if fold != SELECTION)

    def rows(self, fold: int) -> Array:
        """Row numbers of a fold's images, or of the selection set."""
        return np.flatnonzero(self.fold == fold)


@dataclass(frozen=True)
class Logits:
    """Out-of-fold logits of one run."""

    test: Array
    """float64 [images of the fold, findings], in the order of `StudyData.rows`."""
    selection: Array
    """float64 [images of the selection set, findings]."""
    original: bool
    """Whether the file has the hash of runs.csv; otherwise it is a float16 copy."""


def read_runs(path: Path) -> pd.DataFrame:
    """Read runs.csv.

    Raises:
        UserError: the file is missing or empty, a column is missing, a value has the wrong type, or a run is
            there twice.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist. Run the study first: python -m benchmarks.study")
    names = list(pd.read_csv(path, nrows=0).columns)
    missing = [name for name in COLUMNS if name not in names]
    if missing:
        raise UserError(f"{path} has no column {', '.join(missing)}.")
    try:
        runs = pd.read_csv(path, dtype=COLUMNS, usecols=list(COLUMNS), keep_default_na=False, na_values=[""])
    except ValueError as error:
        raise UserError(f"{path}: {error}. Correct the row, or delete it and repeat the run.") from None
    twice = runs.loc[runs["run"].duplicated(), "run"]
    if len(twice):
        raise UserError(
            f"{path}: the run {twice.iloc[0]} is there {1 + (twice == twice.iloc[0]).sum()} times."
        )
    if runs.empty:
        raise UserError(f"{path} has no run yet.")
    return runs


def read_scales(path: Path) -> pd.DataFrame | None:
    """Read scales.csv, which the study writes with its first loss that has a scale; None if there is none.

    Raises:
        UserError: a column is missing.
    """
    if not path.is_file():
        return None
    scales = pd.read_csv(path)
    missing = [name for name in ("arm", "scale", "backbone", "image_size") if name not in scales.columns]
    if missing:
        raise UserError(f"{path} has no column {', '.join(missing)}.")
    return scales


def read_data(path: Path, config: EvaluateConfig) -> StudyData:
    """Read data.npz.

    Args:
        path: the file.
        config: limits of the tiers.

    Raises:
        UserError: the file is missing or damaged, a patient is in two folds, or a finding has no known label in
            the folds.
    """
    arrays = _load(path, ("patient_id", "targets", "fold", "findings"))
    patients, fold = arrays["patient_id"].astype(str), arrays["fold"].astype(np.int64)
    targets = arrays["targets"].astype(np.float64)
    findings = tuple(str(name) for name in arrays["findings"])
    if targets.shape != (len(fold), len(findings)) or len(patients) != len(fold):
        raise UserError(f"{path}: targets, fold, patient_id and findings do not have the same lengths.")
    pairs = pd.DataFrame({"patient": patients, "fold": fold}).drop_duplicates()
    split = pairs.loc[pairs["patient"].duplicated(), "patient"]
    if len(split):
        raise UserError(
            f"{path}: images of patient {split.iloc[0]} are in more than one fold. Prepare again."
        )
    tiers: dict[str, Tier] = {}
    positives: dict[str, int] = {}
    for column, name in enumerate(findings):
        labels = targets[fold != SELECTION, column]
        known = int((~np.isnan(labels)).sum())
        positives[name] = int((labels == 1).sum())
        if not known:
            raise UserError(f"{path}: no image of the folds has a label for {name}.")
        tiers[name] = tier(positives[name], known, config.head, config.tail)
    return StudyData(patients, targets, fold, findings, tiers, positives)


def read_logits(path: Path, fold: int, data: StudyData, digest: str) -> Logits:
    """Read the logits of one run, sorted by row.

    Args:
        path: the archive.
        fold: fold of the run.
        data: images of the study.
        digest: first 16 hexadecimal digits of the SHA-256 of the file that the run wrote.

    Raises:
        UserError: the file is missing or damaged, is of other images, has a logit that is not finite, or differs from
            what the run wrote without being a float16 copy of it.
    """
    arrays = _load(path, ("test_rows", "test_logits", "selection_rows", "selection_logits"))
    original = sha256(path).startswith(digest)
    if not original and arrays["test_logits"].dtype != np.float16:
        raise UserError(
            f"{path} is not the file that its row of runs.csv names. Restore it or repeat the run."
        )
    sides = []
    for part, wanted in (("test", fold), ("selection", SELECTION)):
        rows, logits = arrays[f"{part}_rows"], arrays[f"{part}_logits"].astype(np.float64)
        order = np.argsort(rows, kind="stable")
        if not np.array_equal(rows[order], data.rows(wanted)) or logits.shape != (
            len(rows),
            len(data.findings),
        ):
            raise UserError(f"{path}: the {part} logits are not of the images of data.npz. Repeat the run.")
        if not np.isfinite(logits).all():
            raise UserError(
                f"{path}: a {part} logit is not finite: the training diverged or the file is damaged."
            )
        sides.append(logits[order])
    return Logits(sides[0], sides[1], original)


def _load(path: Path, names: tuple[str, ...]) -> dict[str, Array]:
    """Arrays of an npz archive."""
    if not path.is_file():
        raise UserError(
            f"{path} does not exist. It is written by python -m benchmarks.study and kept outside git."
        )
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in names}
    except (ValueError, OSError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
