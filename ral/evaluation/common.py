"""The images and findings that two models have in common."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ral.evaluation.rows import ATTRIBUTES, KEYS


def restrict(
    studies: pd.DataFrame,
    models: Mapping[str, pd.DataFrame],
    scored: NDArray[np.bool_],
    findings: list[str],
) -> tuple[pd.DataFrame, dict[str, pd.DataFrame]]:
    """Keep the test images and findings to score, for `compare.compare` or `score.evaluate`.

    Args:
        studies: all splits, as `rows.read_studies` gives them.
        models: name -> raw logits, image_id and a column per finding.
        scored: which rows of `studies` are the test images to score.
        findings: the findings to score; every model has them.

    Returns:
        The other splits and the scored images, with their attributes and these findings; and the logits of the scored
        images by model.
    """
    attributes = [name for name in ATTRIBUTES if name in studies.columns]
    other_splits = (studies["split"] != "test").to_numpy()
    rows = studies.loc[other_splits | scored, [*KEYS, *attributes, *findings]]
    ids = studies.loc[scored, "image_id"]
    logits = {
        name: table.loc[table["image_id"].isin(ids), ["image_id", *findings]]
        for name, table in models.items()
    }
    return rows, logits
