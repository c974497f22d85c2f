"""calibration.json: the calibration map and thresholds of every finding, and their application to other logits."""

import hashlib
import json
from typing import Any

import numpy as np
import pandas as pd

from ral.config.evaluate import Rule
from ral.errors import UserError
from ral.evaluation.calibration import saved_map
from ral.evaluation.score import Evaluation

FORMAT = 1


def to_json(evaluation: Evaluation) -> dict[str, Any]:
    """The content of calibration.json: maps and thresholds exactly as used; a finding without a map is null.

    `version` is a digest of maps and thresholds, so that predictions can be traced to them.
    """
    findings: dict[str, Any] = {}
    for finding in evaluation.findings:
        if finding.map is None:
            findings[finding.name] = None
            continue
        findings[finding.name] = {
            "kind": finding.map.kind,
            "numbers": list(finding.map.numbers),
            "knots": [list(knot) for knot in finding.map.knots],
            "thresholds": dict(finding.thresholds),
        }
    content = {"format": FORMAT, "rule": evaluation.config.threshold.rule, "findings": findings}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return content | {"data": evaluation.data, "version": digest[:12]}


def apply(
    content: dict[str, Any], logits: pd.DataFrame, rule: Rule | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Apply a calibration.json to raw logits: calibrated scores and binary predictions (True, False).

    Args:
        content: the content of calibration.json (`to_json`).
        logits: image_id and one column per finding of the file.
        rule: threshold rule; None for the rule of the evaluation.

    Returns:
        Two tables of the shape of `logits`; a finding without a map is NaN in the first and missing in the second.

    Raises:
        UserError: unsupported format; a missing column; a logit that is not finite.
    """
    if content.get("format") != FORMAT:
        raise UserError(
            f"calibration.json has the format {content.get('format')}, not {FORMAT}. Run evaluate again."
        )
    missing = [name for name in ("image_id", *content["findings"]) if name not in logits.columns]
    if missing:
        raise UserError(f"logits: no column {', '.join(missing)}, required by calibration.json.")
    scores, calls = logits[["image_id"]].copy(), logits[["image_id"]].copy()
    for name, saved in content["findings"].items():
        raw = logits[name].to_numpy(dtype=np.float64)
        if not np.isfinite(raw).all():
            raise UserError(
                f"logits: {name} is NaN or infinite for {int((~np.isfinite(raw)).sum())} image(s)."
            )
        if saved is None:
            scores[name], calls[name] = np.nan, pd.array([None] * len(logits), dtype="boolean")
            continue
        scores[name] = saved_map(saved).apply(raw)
        threshold = saved["thresholds"][rule or content["rule"]]
        calls[name] = pd.array(scores[name] >= threshold, dtype="boolean")
    return scores, calls
