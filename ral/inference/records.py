"""What training and evaluation recorded about a model beside its weights, for evaluating it on other images."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from ral import artifacts
from ral.config.base import load, read_yaml
from ral.config.evaluate import EvaluateConfig, EvaluateParams
from ral.data.baseline import SPLIT, read_split
from ral.errors import UserError
from ral.evaluation.calibration_io import SavedCalibration, SavedFinding, read
from ral.evaluation.score import FittedFinding
from ral.inference.bundle import BUNDLE, CALIBRATION, FINDINGS
from ral.inference.export_folder import INDEX
from ral.labels import TIERS


@dataclass(frozen=True)
class ModelRecord:
    """Tiers, calibration, thresholds and parameters of a model, as released."""

    findings: tuple[FittedFinding, ...]
    """In the order of the model's outputs."""
    config: EvaluateConfig
    """How the model was evaluated; the rule of the thresholds is that of calibration.json."""
    source: str
    """data.source of the training images."""
    split: "pd.Series[Any] | None"
    """Split by patient id of the images that the model was trained and tested on; None if it is not known."""


def read_record(folder: Path, findings: Sequence[str], version: str | None = None) -> ModelRecord:
    """Read the record of a model.

    Args:
        folder: of the model, as for `ral.inference.released.open_model`.
        findings: the model's.
        version: of the calibration that `open_model` opened the model with; None if it did not.

    Raises:
        UserError: the model is an export; a file is missing, damaged or of another model.
    """
    if (folder / BUNDLE).is_file():
        reports = project = prepared = folder
    elif (folder / INDEX).is_file():
        raise UserError(
            f"{folder} is an export, which has neither the tiers of the findings nor the parameters of the evaluation. "
            "Name with --model the release or the project folder that it was made from."
        )
    else:
        project = folder if (folder / artifacts.MODEL).is_file() else folder.resolve().parent
        reports, prepared = project / artifacts.REPORTS, project / artifacts.PREPARED
    for path in (reports / FINDINGS, project / "params.yaml"):
        if not path.is_file():
            raise UserError(
                f"{path} does not exist: it has the tiers of the findings, or how they are evaluated. Releases have it "
                "since `ral evaluate` exists: register the model again, or name the project folder that trained it."
            )
    calibration = read(reports / CALIBRATION)
    if version is not None and calibration.version != version:
        raise UserError(
            f"{reports / CALIBRATION} has the version {calibration.version}, but the model was opened with {version}: "
            "it is of another model. Name the release or the project folder of the model."
        )
    config: EvaluateConfig = load(project / "params.yaml", EvaluateParams).evaluate
    threshold = config.threshold.model_copy(update={"rule": calibration.rule})
    return ModelRecord(
        findings=_fitted(reports / FINDINGS, findings, calibration),
        config=config.model_copy(update={"threshold": threshold}),
        source=str(read_yaml(project / "params.yaml").get("data", {}).get("source", "not known")),
        split=read_split(prepared) if (prepared / SPLIT).is_file() else None,
    )


def _fitted(path: Path, findings: Sequence[str], calibration: SavedCalibration) -> tuple[FittedFinding, ...]:
    remedy = "Restore it, or run the step evaluate again."
    try:
        # As text: only empty cells are missing values (a finding may be named NA), and float() reads every digit.
        table = pd.read_csv(path, dtype=str, keep_default_na=False).set_index("finding")
        columns = table.loc[list(findings), ["tier", "train_prevalence", "train_positives", "threshold"]]
        return tuple(
            _finding(name, columns.loc[name].to_dict(), calibration.findings[name]) for name in findings
        )
    except (ValueError, KeyError) as error:
        raise UserError(
            f"{path} does not have the findings of the model ({str(error).strip()}). {remedy}"
        ) from None


def _finding(name: str, row: dict[Any, Any], saved: SavedFinding | None) -> FittedFinding:
    """A finding from its row of findings.csv (text) and its entry in calibration.json."""
    if row["tier"] not in TIERS:
        raise ValueError(f"tier {row['tier']!r}")
    return FittedFinding(
        name=name,
        tier=row["tier"],
        train_prevalence=float(row["train_prevalence"]),
        train_positives=int(row["train_positives"]),
        threshold=float(row["threshold"]) if row["threshold"] else None,
        map=None if saved is None else saved.map,
        thresholds={} if saved is None else saved.thresholds,
    )
