"""Flip audit: what the network answers if left and right of the images are exchanged.

A thorax is not symmetric (heart, aortic arch, stomach, side markers), so a small change is no fault; a large one on
findings without a side shows that the network uses the side of something else.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from ral.evaluation.bootstrap import BootstrapDistribution, Support
from ral.evaluation.metrics import divide
from ral.evaluation.resampled_metrics import Scored
from ral.evaluation.results import NO_INTERVAL, Level, rounded_number
from ral.evaluation.score import means_to_take
from ral.robustness.contents import Flip, FlipRow
from ral.robustness.subject import Subject


@dataclass(frozen=True)
class _Change:
    """The change of one finding."""

    logit: float
    probability: float | None
    changed: NDArray[np.bool_] | None
    """Whether the call of each image changes; None without calls."""
    rank_correlation: float | None


def audit_flip(subject: Subject, clean: NDArray[np.float32], flipped: NDArray[np.float32]) -> Flip:
    """Compare the answers to the images and to their mirror images.

    Args:
        subject: the model and the images.
        clean: raw logits of the test images [images, findings].
        flipped: raw logits of their mirror images.
    """
    before, after = subject.scored(clean), subject.scored(flipped)
    rule = subject.calibration.rule
    changes = {name: _change(before[name], after[name], before[name].thresholds.get(rule)) for name in before}
    masks = [change.changed for change in changes.values() if change.changed is not None]
    images = (
        subject.resamples.interval(_share(subject, np.logical_or.reduce(masks))) if masks else NO_INTERVAL
    )
    return Flip(
        rows=tuple(
            _row(subject, level, name, [changes[member] for member in members])
            for level, name, members in means_to_take(subject.tiers)
            if members
        ),
        changed_images=rounded_number(images.value),
        low=rounded_number(images.low),
        high=rounded_number(images.high),
    )


def _change(before: Scored, after: Scored, threshold: float | None) -> _Change:
    probability, changed = None, None
    if before.scores is not None and after.scores is not None and threshold is not None:
        probability = float(np.abs(after.scores - before.scores).mean())
        changed = (after.scores >= threshold) != (before.scores >= threshold)
    return _Change(
        logit=float(np.abs(after.logits - before.logits).mean()),
        probability=probability,
        changed=changed,
        rank_correlation=_rank_correlation(before.logits, after.logits),
    )


def _rank_correlation(first: NDArray[np.float64], second: NDArray[np.float64]) -> float | None:
    """Spearman's rank correlation; None if all values of a side are equal."""
    ranks = [rankdata(values) for values in (first, second)]
    centred = [values - values.mean() for values in ranks]
    norm = float(np.sqrt(np.prod([values @ values for values in centred])))
    return float(centred[0] @ centred[1]) / norm if norm else None


def _row(subject: Subject, level: Level, name: str, changes: list[_Change]) -> FlipRow:
    shares = [_share(subject, change.changed) for change in changes if change.changed is not None]
    calls = subject.resamples.interval(shares[0] if len(shares) == 1 else subject.resamples.mean(shares))
    return FlipRow(
        level=level,
        name=name,
        logit=round(float(np.mean([change.logit for change in changes])), 6),
        probability=_mean([change.probability for change in changes]),
        changed_calls=rounded_number(calls.value),
        low=rounded_number(calls.low),
        high=rounded_number(calls.high),
        rank_correlation=_mean([change.rank_correlation for change in changes]),
    )


def _share(subject: Subject, rows: NDArray[np.bool_]) -> BootstrapDistribution:
    """The share of the images in a mask, in every resample."""
    totals = subject.resamples.totals(np.stack([rows, np.ones(len(rows))], axis=1))
    share = divide(totals[:, 0], totals[:, 1], totals[:, 1] > 0)
    return BootstrapDistribution(share, Support.of(np.bincount(subject.resamples.patient)), "share")


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(float(np.mean(known)), 6) if known else None
