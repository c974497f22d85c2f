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
# Significant digits of what is saved; the maps of two machines differ further down.
DIGITS = 9


def to_json(evaluation: Evaluation) -> dict[str, Any]:
    """The content of calibration.json: numbers with nine digits; a finding without a map is null.

    `version` is a digest of the maps and thresholds: predictions that name it can be traced to them.
    """
    findings: dict[str, Any] = {}
    for finding in evaluation.findings:
        if finding.map is None:
            findings[finding.name] = None
            continue
        findings[finding.name] = {
            "kind": finding.map.kind,
            "numbers": [_short(number) for number in finding.map.numbers],
            "knots": [[_short(x), _short(y)] for x, y in finding.map.knots],
            "thresholds": {rule: _short(value) for rule, value in finding.thresholds.items()},
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
                f"logits: {name} is NaN or infinite for {int((~np.isfinite(raw)).sum())} film(s)."
            )
        if saved is None:
            scores[name], calls[name] = np.nan, pd.array([None] * len(logits), dtype="boolean")
            continue
        kind = KINDS[KINDS.index(saved["kind"])]
        found = Map(kind, tuple(saved["numbers"]), tuple((x, y) for x, y in saved["knots"]))
        scores[name] = found.apply(raw)
        threshold = saved["thresholds"][rule or content["rule"]]
        # The threshold was a score of a film: a digit lost in writing must not lose that film.
        calls[name] = pd.array(scores[name] >= threshold * (1 - 1e-8), dtype="boolean")
    return scores, calls


def _short(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
