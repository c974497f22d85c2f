"""calibration.json: the calibration map and thresholds of every finding, and their application to other logits."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import ValidationError

from ral.artifacts import CALIBRATION
from ral.config.evaluate import Rule
from ral.errors import UserError
from ral.evaluation.calibration import Kind, Map
from ral.files import read_json
from ral.labels import Data
from ral.records import Record, problem

FORMAT = 1
REMEDY = "Run evaluate again, or restore it (dvc checkout)."


class SavedFinding(Record):
    """The calibration map and the thresholds of a finding."""

    kind: Kind
    numbers: tuple[float, ...]
    knots: tuple[tuple[float, float], ...]
    thresholds: dict[Rule, float]
    """Of the calibrated scores."""

    @property
    def map(self) -> Map:
        """The calibration map."""
        return Map(self.kind, self.numbers, self.knots)


class SavedCalibration(Record):
    """Content of calibration.json."""

    format: int
    rule: Rule
    """The threshold rule of the evaluation."""
    findings: dict[str, SavedFinding | None]
    """A finding without a map is null."""
    data: Data
    version: str
    """Digest of maps and thresholds, so that predictions can be traced to them."""


def apply(
    content: Mapping[str, Any], logits: pd.DataFrame, rule: Rule | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Apply a calibration.json to raw logits: calibrated scores and binary predictions (True, False).

    Args:
        content: the content of calibration.json.
        logits: image_id and one column per finding of the file.
        rule: threshold rule; None for the rule of the evaluation.

    Returns:
        Two tables of the shape of `logits`; a finding without a map is NaN in the first and missing in the second.

    Raises:
        UserError: unsupported format; damaged content; a missing column; a logit that is not finite.
    """
    calibration = parse(content)
    missing = [name for name in ("image_id", *calibration.findings) if name not in logits.columns]
    if missing:
        raise UserError(f"logits: no column {', '.join(missing)}, required by calibration.json.")
    scores, calls = logits[["image_id"]].copy(), logits[["image_id"]].copy()
    for name, finding in calibration.findings.items():
        raw = logits[name].to_numpy(dtype=np.float64)
        if not np.isfinite(raw).all():
            raise UserError(
                f"logits: {name} is NaN or infinite for {int((~np.isfinite(raw)).sum())} image(s)."
            )
        if finding is None:
            scores[name], calls[name] = np.nan, pd.array([None] * len(logits), dtype="boolean")
            continue
        scores[name] = finding.map.apply(raw)
        threshold = finding.thresholds[rule or calibration.rule]
        calls[name] = (scores[name] >= threshold).astype("boolean")
    return scores, calls


def parse(content: Mapping[str, Any], name: str = CALIBRATION.name) -> SavedCalibration:
    """The content of calibration.json, checked.

    Args:
        content: as read from the file.
        name: of the file, for messages.

    Raises:
        UserError: unsupported format; damaged content.
    """
    if "format" in content and content["format"] != FORMAT:
        raise UserError(f"{name} has the format {content['format']}, not {FORMAT}. {REMEDY}")
    try:
        return SavedCalibration.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{name} is damaged ({problem(error)}). {REMEDY}") from None


def read(path: Path) -> SavedCalibration:
    """Read a calibration.json.

    Raises:
        UserError: the file is missing or damaged, or has another format.
    """
    try:
        return parse(dict(read_json(path)), str(path))
    except FileNotFoundError:
        raise UserError(
            f"{path} does not exist: without it the model has no probabilities and no thresholds. Run the step "
            "evaluate (dvc repro evaluate), or use a release that has it."
        ) from None
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}: {error}). {REMEDY}") from None
