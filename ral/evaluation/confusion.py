"""Which findings are taken for which: from labels and logits alone."""

import numpy as np
import pandas as pd


def confusion(studies: pd.DataFrame, logits: pd.DataFrame, top: int) -> pd.DataFrame:
    """How often an image that has one finding, and not another, ranks the other among its highest.

    Raw logits of two findings cannot be compared, so each logit first becomes its place among all images' logits of
    that finding (0 the lowest, 1 the highest, ties their mean); an image's highest ranked findings are those of its
    `top` highest places. Only images of which both labels are known count.

    Args:
        studies: 1, 0 or NaN per finding.
        logits: a column per finding; the same rows in the same order (`ral.evaluation.rows.align`).
        top: how many findings of an image count as its highest ranked; ties at the last place all count.

    Returns:
        A row per ordered pair: `finding` (present), `taken_for` (absent), `images` that are so, `times` that the absent
        one is among the highest ranked, `share` of those images, and `share_without`: the same share among the images
        that have neither, for comparison. A share of no images is NaN.
    """
    names = [str(name) for name in logits.columns]
    labels = studies[names].to_numpy(np.float64, na_value=np.nan)
    places = (logits.rank(method="average").to_numpy() - 1) / max(len(logits) - 1, 1)
    higher = (places[:, None, :] > places[:, :, None]).sum(axis=2)  # findings above each finding, per image
    ranked = higher < top
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
                    "times": int(ranked[images, j].sum()),
                    "share": ranked[images, j].mean() if images.any() else np.nan,
                    "share_without": ranked[neither, j].mean() if neither.any() else np.nan,
                }
            )
    columns = ["finding", "taken_for", "images", "times", "share", "share_without"]
    return pd.DataFrame(rows, columns=columns).round({"share": 6, "share_without": 6})
