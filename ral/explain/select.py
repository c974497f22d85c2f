"""Selection of images per finding: candidates for the most confident hits and false positives, and the worst misses.

No threshold is used here: which of them lie beyond the threshold is known after the evaluation.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ral.explain.contents import KINDS, Kind


@dataclass(frozen=True)
class SelectedImage:
    """An image selected for a finding."""

    image_id: str
    logit: float
    """Raw logit of the finding."""
    rank: int
    """Rank among the images with a known label, 1 for the highest logit; ties by image id."""


@dataclass(frozen=True)
class Selection:
    """The images selected for a finding, and the number of candidates."""

    finding: str
    positives: int
    negatives: int
    unknown: int
    hits: tuple[SelectedImage, ...]
    """Positive images, by descending logit."""
    false_positives: tuple[SelectedImage, ...]
    """Negative images, by descending logit."""
    misses: tuple[SelectedImage, ...]
    """Positive images, by ascending logit; with few positives, some are among the hits too."""
    note: str | None
    """Why a list is empty; None if all lists have images."""

    def images(self, kind: Kind) -> tuple[SelectedImage, ...]:
        """The images of a kind."""
        return dict(zip(KINDS, (self.hits, self.false_positives, self.misses), strict=True))[kind]


def select(studies: pd.DataFrame, logits: pd.DataFrame, per_kind: int) -> list[Selection]:
    """Select up to `per_kind` images of each kind for every finding, by rank; no threshold is used.

    Those of a list that lie beyond a threshold are then the most extreme ones beyond it. Images with an unknown label
    are neither selected nor ranked. The lists of a finding without positives are empty.

    Args:
        studies: image_id, and 1, 0 or NaN per finding.
        logits: a column of raw logits per finding; the same rows in the same order
            (`ral.evaluation.rows.align`).
        per_kind: maximum number of images of a kind.
    """
    ids = studies["image_id"].to_numpy(dtype=str)
    return [
        _select(
            str(name), ids, studies[name].to_numpy(np.float64), logits[name].to_numpy(np.float64), per_kind
        )
        for name in logits.columns
    ]


def _select(
    finding: str, ids: NDArray[Any], labels: NDArray[Any], logits: NDArray[Any], per_kind: int
) -> Selection:
    known = np.flatnonzero(~np.isnan(labels))
    ranked = known[np.lexsort((ids[known], -logits[known]))]
    ranks = {row: rank for rank, row in enumerate(ranked, start=1)}
    positive, negative = ranked[labels[ranked] == 1], ranked[labels[ranked] == 0]

    def entries(rows: NDArray[Any]) -> tuple[SelectedImage, ...]:
        return tuple(SelectedImage(str(ids[row]), float(logits[row]), ranks[row]) for row in rows)

    none = positive[:0]
    return Selection(
        finding=finding,
        positives=len(positive),
        negatives=len(negative),
        unknown=len(labels) - len(known),
        hits=entries(positive[:per_kind]),
        false_positives=entries(negative[:per_kind] if len(positive) else none),
        misses=entries(positive[::-1][:per_kind]),
        note=_note(len(positive), len(negative)),
    )


def _note(positives: int, negatives: int) -> str | None:
    if not positives:
        return "No test image is known to have this finding: nothing is shown."
    if not negatives:
        return "No test image is known to be without this finding: there are no false positives."
    return None
