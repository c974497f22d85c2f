"""calibration.json: the maps and thresholds of every finding, with a version, to be applied to other logits."""

import hashlib
import json
from typing import Any

import numpy as np
import pandas as pd

from ral.config.evaluate import Rule
from ral.errors import UserError
from ral.evaluation.calibration import KINDS, Map
from ral.evaluation.score import Evaluation

FORMAT = 1


def to_json(evaluation: Evaluation) -> dict[str, Any]:
    """The content of calibration.json: maps and thresholds as they are used; a finding without a map is null.

    `version` is a digest of the maps and thresholds: predictions that name it can be traced to them.
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
    """Calibrated scores and calls (True, False) of raw logits, as of a saved calibration.json.

    Args:
        content: what `to_json` returned.
        logits: image_id and one column per finding of the file.
        rule: whose thresholds; None takes the one that the evaluation was run with.

    Returns:
        Two tables of the shape of `logits`; a finding without a map is NaN in the first and missing in the second.

    Raises:
        UserError: another format; a finding or image_id without a column; a logit that is not finite.
    """
    if content.get("format") != FORMAT:
        raise UserError(
            f"calibration.json has the format {content.get('format')}, not {FORMAT}. Run evaluate again."
        )
    missing = [name for name in ("image_id", *content["findings"]) if name not in logits.columns]
    if missing:
        raise UserError(f"logits: no column {', '.join(missing)}, which calibration.json needs.")
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
        kind = KINDS[KINDS.index(saved["kind"])]
        found = Map(kind, tuple(saved["numbers"]), tuple((x, y) for x, y in saved["knots"]))
        scores[name] = found.apply(raw)
        threshold = saved["thresholds"][rule or content["rule"]]
        calls[name] = pd.array(scores[name] >= threshold, dtype="boolean")
    return scores, calls
