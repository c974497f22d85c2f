"""The images worth a look, per finding: most confident hits, most confident false positives, worst misses."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

KINDS = ("hits", "false_positives", "misses")


@dataclass(frozen=True)
class Chosen:
    """An image chosen for a finding."""

    image_id: str
    logit: float
    """Raw logit of the finding."""
    rank: int
    """Its place among the images whose label is known, from 1 for the highest logit; ties by image id."""


@dataclass(frozen=True)
class Selection:
    """The images chosen for a finding, and among how many."""

    finding: str
    positives: int
    negatives: int
    unknown: int
    hits: tuple[Chosen, ...]
    """Positive images from the highest logit down."""
    false_positives: tuple[Chosen, ...]
    """Negative images from the highest logit down."""
    misses: tuple[Chosen, ...]
    """Positive images from the lowest logit up; none of them is among the hits."""
    note: str | None
    """Why a list is empty; None if none is."""


def select(studies: pd.DataFrame, logits: pd.DataFrame, per_kind: int) -> list[Selection]:
    """Choose up to `per_kind` images of each kind for every finding, from ranks alone: no threshold is involved.

    Where a finding has fewer than twice that many positive images, the upper half of them (rounded up) can be hits and
    the rest misses, so that no image is both. Images whose label is unknown are never chosen or ranked. A finding
    without a positive image has no lists at all.

    Args:
        studies: image_id, and 1, 0 or NaN per finding.
        logits: a column of raw logits per finding; the same rows in the same order (`ral.evaluation.rows.align`).
        per_kind: most images of a kind.
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
    places = {row: place for place, row in enumerate(ranked, start=1)}
    positive, negative = ranked[labels[ranked] == 1], ranked[labels[ranked] == 0]
    hits = min(per_kind, -(-len(positive) // 2))
    misses = min(per_kind, len(positive) - hits)

    def chosen(rows: NDArray[Any]) -> tuple[Chosen, ...]:
        return tuple(Chosen(str(ids[row]), float(logits[row]), places[row]) for row in rows)

    none = positive[:0]
    return Selection(
        finding=finding,
        positives=len(positive),
        negatives=len(negative),
        unknown=len(labels) - len(known),
        hits=chosen(positive[:hits]),
        false_positives=chosen(negative[:per_kind] if len(positive) else none),
        misses=chosen(positive[::-1][:misses]),
        note=_note(len(positive), len(negative)),
    )


def _note(positives: int, negatives: int) -> str | None:
    if not positives:
        return "No test image is known to have this finding: nothing is shown."
    if not negatives:
        return "No test image is known to be without this finding: there are no false positives."
    if positives == 1:
        return "One test image has this finding: it is shown as a hit, whatever its rank."
    return None
