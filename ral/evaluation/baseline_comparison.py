"""The accepted model of an earlier day beside this one: paired differences on the test images that both scored."""

import numpy as np
import pandas as pd

from ral.config.evaluate import EvaluateConfig
from ral.evaluation.compare import COLUMNS, compare
from ral.evaluation.rows import ATTRIBUTES, KEYS, findings_of

PREVIOUS, NEW = "previous", "this model"


def comparison(
    studies: pd.DataFrame, logits: pd.DataFrame, previous: pd.DataFrame | None, config: EvaluateConfig
) -> pd.DataFrame:
    """comparison.csv: `compare.compare` with the previous model as the baseline, and how many images it is over.

    Both are scored on the same rows: the test images and the findings that both have. An image that is a test image now and
    has logits of the previous model was a test image of that one, too, so that neither trained on it. Where nothing is
    left, one row says so.

    Args:
        studies: as for `score.evaluate`.
        logits: of the test images, of this model.
        previous: of the test images of its time, of the previous model; None where none was accepted.
        config: tiers, least positives and the bootstrap.

    Returns:
        The columns of `compare.COLUMNS`, then images and patients; no row without a previous model.

    Raises:
        UserError: see `rows.align`.
    """
    columns = [*COLUMNS, "images", "patients"]
    if previous is None:
        return pd.DataFrame(columns=columns)
    findings = [name for name in findings_of(studies) if name in previous.columns]
    test = studies["split"] == "test"
    common = test & studies["image_id"].isin(previous["image_id"])
    if not findings or not common.any():
        what = "finding" if not findings else "test image"
        row = {"metric": "ap", "level": "macro", "name": "macro", "model": NEW, "baseline": PREVIOUS}
        note = f"not comparable: no {what} in common"
        return pd.DataFrame(
            [row | {"findings": 0, "note": note, "images": 0, "patients": 0}], columns=columns
        )
    kept = [*KEYS, *(name for name in ATTRIBUTES if name in studies.columns), *findings]
    rows = studies.loc[~test | common, kept]
    models = {
        name: table.loc[table["image_id"].isin(studies.loc[common, "image_id"]), ["image_id", *findings]]
        for name, table in ((PREVIOUS, previous), (NEW, logits))
    }
    found = compare(rows, models, "test", config)
    patients = studies.loc[common, "patient_id"].nunique()
    return found.assign(images=int(np.count_nonzero(common)), patients=patients)[columns]
