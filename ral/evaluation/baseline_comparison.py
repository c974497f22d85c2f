"""Paired comparison of this model with the accepted earlier model, on the test images that both scored."""

import numpy as np
import pandas as pd

from ral.config.evaluate import EvaluateConfig
from ral.evaluation.common import restrict
from ral.evaluation.compare import COLUMNS, compare
from ral.evaluation.rows import findings_of
from ral.labels import common_findings

PREVIOUS, NEW = "previous", "this model"


def comparison(
    studies: pd.DataFrame, logits: pd.DataFrame, previous: pd.DataFrame | None, config: EvaluateConfig
) -> pd.DataFrame:
    """comparison.csv: `compare.compare` with the previous model as the baseline, plus the numbers of images
    and patients.

    Both models are scored on the same rows: the test images and findings that both have. The previous model
    has logits of its own test images only, so neither model was trained on these images. If nothing is in
    common, one row says so.

    Args:
        studies: as for `score.evaluate`.
        logits: test logits of this model.
        previous: test logits of the previous model on its own test images; None if no model was accepted.
        config: tiers, minimum positives and bootstrap.

    Returns:
        The columns of `compare.COLUMNS`, then images and patients; no rows without a previous model.

    Raises:
        UserError: see `rows.align`.
    """
    columns = [*COLUMNS, "images", "patients"]
    if previous is None:
        return pd.DataFrame(columns=columns)
    findings = common_findings(findings_of(studies), previous.columns)
    test = studies["split"] == "test"
    common = (test & studies["image_id"].isin(previous["image_id"])).to_numpy()
    if not findings or not common.any():
        missing = "finding" if not findings else "test image"
        row = {"metric": "ap", "level": "macro", "name": "macro", "model": NEW, "baseline": PREVIOUS}
        note = f"not comparable: no {missing} in common"
        return pd.DataFrame(
            [row | {"findings": 0, "note": note, "images": 0, "patients": 0}], columns=columns
        )
    rows, models = restrict(studies, {PREVIOUS: previous, NEW: logits}, common, findings)
    table = compare(rows, models, "test", config)
    patients = studies.loc[common, "patient_id"].nunique()
    return table.assign(images=int(np.count_nonzero(common)), patients=patients)[columns]
