"""Confusion between findings, from labels and logits."""

import numpy as np
import pandas as pd


def confusion(studies: pd.DataFrame, logits: pd.DataFrame, top: int) -> pd.DataFrame:
    """How often an image with one finding and without another ranks the absent one among its highest findings.

    Raw logits of different findings are not comparable, so each logit is first replaced by its normalized
    rank among all images (0 lowest, 1 highest, ties averaged); the highest findings of an image are its `top`
    highest ranks. Only images with both labels known are counted.

    Args:
        studies: 1, 0 or NaN per finding.
        logits: a column per finding; the same rows in the same order (`ral.evaluation.rows.align`).
        top: number of findings of an image that count as its highest; ties for the last rank all count.

    Returns:
        A row per ordered pair: `finding` (present), `taken_for` (absent), number of such `images`, `times` that the
        absent one is among the highest, `share` of those images, and for comparison `share_without`: the same share
        among the images with neither finding. A share of zero images is NaN.
    """
    names = [str(name) for name in logits.columns]
    labels = studies[names].to_numpy(np.float64, na_value=np.nan)
    ranks = (logits.rank(method="average").to_numpy() - 1) / max(len(logits) - 1, 1)
    higher = (ranks[:, None, :] > ranks[:, :, None]).sum(
        axis=2
    )  # number of findings ranked above each finding, per image
    is_among_top = higher < top
    rows = []
    for i, present in enumerate(names):
        for j, absent in enumerate(names):
            if i == j:
                continue
            images = (labels[:, i] == 1) & (labels[:, j] == 0)
            neither = (labels[:, i] == 0) & (labels[:, j] == 0)
            rows.append(
                {
                    "finding": present,
                    "taken_for": absent,
                    "images": int(images.sum()),
                    "times": int(is_among_top[images, j].sum()),
                    "share": is_among_top[images, j].mean() if images.any() else np.nan,
                    "share_without": is_among_top[neither, j].mean() if neither.any() else np.nan,
                }
            )
    columns = ["finding", "taken_for", "images", "times", "share", "share_without"]
    return pd.DataFrame(rows, columns=columns).round({"share": 6, "share_without": 6})
