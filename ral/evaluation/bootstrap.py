"""Resampling of whole patients (the films of one are not independent), and intervals from it.

Everything that is resampled is an array of values (`Sampled`), one for each column of `Resamples.weights`: the sample
itself, its replicates, and, for BCa, the sample without a group of patients. Means and differences of metrics are
means and differences of such arrays, so that all figures come from the same resamples.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.special import ndtr, ndtri, stdtr, stdtrit

from ral.errors import UserError
from ral.evaluation.metrics import BLOCK

Array = NDArray[Any]
Method = Literal["percentile", "bca"]

# Groups of patients left out in turn for the acceleration of BCa: one by one up to this many patients.
JACKKNIFE = 1000


# With fewer patients behind a metric there is no interval: one patient says nothing of others.
LEAST = 1.5


@dataclass(frozen=True)
class Sampled:
    """A metric in every column of the resamples."""

    values: Array
    """float64 [columns]; NaN where the metric is not defined."""
    patients: float
    """How many patients of the same number of films would tell as much: see `effective`."""
    share: bool = True
    """Whether it is a share, or ends at 0 and 1 as one: see `Resamples.interval`."""

    def __sub__(self, other: "Sampled") -> "Sampled":
        """The difference, of the same resamples."""
        return Sampled(self.values - other.values, min(self.patients, other.patients), share=False)


@dataclass(frozen=True)
class Interval:
    """A metric and where it may lie."""

    value: float | None
    """None if it is not estimable; so are the ends."""
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Resamples:
    """The patients of some rows, and how often each is in each resample."""

    patient: Array
    """Number of each row's patient, int64 [rows]."""
    weights: Array
    """Column 0 is the sample itself, then come the replicates, then (BCa) the leave-out samples;
    uint16 [patients, columns]."""
    replicates: int
    confidence: float
    method: Method

    @property
    def patients(self) -> int:
        """Patients there are."""
        return len(self.weights)

    def rows(self, chosen: Array) -> "Resamples":
        """The same resamples of some of the rows (bool [rows]) and of their patients."""
        if chosen.all():
            return self
        used, patient = np.unique(self.patient[chosen], return_inverse=True)
        return replace(self, patient=patient, weights=self.weights[used])

    def totals(self, values: Array) -> Array:
        """Sum of each column of `values` [rows, k] in every resample, float64 [columns, k]."""
        rows = np.arange(len(self.patient))
        member = csr_array((np.ones(len(rows)), (self.patient, rows)), shape=(self.patients, len(rows)))
        sums = member @ np.asarray(values, dtype=np.float64)
        size = max(16, BLOCK // max(1, self.patients))
        return np.concatenate(
            [
                self.weights[:, start : start + size].T.astype(np.float64) @ sums
                for start in range(0, self.weights.shape[1], size)
            ]
        )

    def effective(self, labels: Array) -> float:
        """Effective number of patients behind a finding: the smaller of those of its positive and negative films.

        Patients have different numbers of films. By Kish (1965), their square of sums over the sum of squares counts
        as many patients of equal numbers.

        Args:
            labels: 1, 0 or NaN [rows].
        """
        counts = []
        for label in (0, 1):
            films = np.bincount(self.patient[labels == label]).astype(np.float64)
            counts.append(films.sum() ** 2 / np.sum(films**2) if films.any() else 0.0)
        return float(min(counts))

    def interval(self, sampled: Sampled) -> Interval:
        """Value and interval of a metric; None where there is none.

        Replicates in which the metric has no value (no positive was drawn) are left out. The ends are those of a t
        distribution of the effective number of patients n, widened by the square root of n / (n - 1), on the scale
        of the quantiles (Hesterberg, 2015): resamples of few patients vary less than samples of as few do.

        Where every replicate is 0, or every one 1 (no positive is found, or all are), resampling cannot say how far
        off the truth may be. The other end is then that of the exact binomial interval of n patients.
        """
        value = float(sampled.values[0])
        drawn = self.drawn(sampled)
        if not np.isfinite(value):
            return Interval(None, None, None)
        if drawn.size == 0 or sampled.patients < LEAST:
            return Interval(value, None, None)
        if sampled.share and value in (0, 1) and np.all(drawn == value):
            far = (0.5 - self.confidence / 2) ** (1 / sampled.patients)
            return Interval(value, far, 1.0) if value else Interval(value, 0.0, 1 - far)
        ends = levels(self.confidence, sampled.patients)
        if self.method == "bca":
            ends = bca_levels(value, drawn, sampled.values[1 + self.replicates :], ends)
        low, high = np.quantile(drawn, ends)
        return Interval(value, float(low), float(high))

    def drawn(self, sampled: Sampled) -> Array:
        """The finite values of the replicates."""
        values = sampled.values[1 : 1 + self.replicates]
        return values[np.isfinite(values)]

    def p_value(self, difference: Sampled, least_variance: float = 0.0) -> float:
        """Two-sided p of no difference, by a t test whose error is the spread of the replicates; NaN if there is none.

        Args:
            difference: the difference in every column.
            least_variance: the variance is taken to be at least this (a share of 10 of 10 has no spread at all).
        """
        value, drawn = float(difference.values[0]), self.drawn(difference)
        if not np.isfinite(value) or drawn.size < 2 or difference.patients < LEAST:
            return float("nan")
        error = np.sqrt(max(float(np.var(drawn)), least_variance) * _widening(difference.patients))
        if error == 0:
            return 1.0 if value == 0 else float("nan")
        return float(2 * stdtr(max(difference.patients - 1, 1.0), -abs(value) / error))

    def mean(self, parts: Sequence[Sampled]) -> Sampled:
        """Mean of several metrics; a replicate in which some have no value is a mean over the others.

        The effective number of patients is Satterthwaite's, as if the metrics varied independently. A finding of one
        patient counts as one of two, so that it does not take the interval from all others.
        """
        if not parts:
            return Sampled(np.full(self.weights.shape[1], np.nan), 0.0)
        share = all(part.share for part in parts)
        stack = np.stack([part.values for part in parts])
        finite = np.isfinite(stack)
        count = finite.sum(axis=0)
        total = np.where(finite, stack, 0.0).sum(axis=0)
        mean = np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)
        spreads = np.array([np.var(self.drawn(part)) if self.drawn(part).size else 0.0 for part in parts])
        freedom = np.array([max(part.patients - 1, 1.0) for part in parts])
        if spreads.sum() == 0:
            return Sampled(mean, float(freedom.min()) + 1, share)
        return Sampled(mean, float(spreads.sum() ** 2 / np.sum(spreads**2 / freedom)) + 1, share)


def draw(
    patients: Array, replicates: int, seed: int, confidence: float = 0.95, method: Method = "percentile"
) -> Resamples:
    """Draw the resamples of the rows' patients.

    A replicate draws as many patients as there are, with replacement; all rows of a patient come as often as the
    patient was drawn. The draw depends on the set of ids and on `seed`, not on the order of the rows.

    Args:
        patients: patient id of each row, text [rows].
        replicates: number of resamples.
        seed: seed of the draw.
        confidence: coverage that the intervals are to have.
        method: how they are read from the replicates.

    Raises:
        UserError: fewer than two patients.
    """
    names, patient = np.unique(patients, return_inverse=True)
    if len(names) < 2:
        raise UserError(
            f"The scored films are of {len(names)} patient(s), but intervals need at least 2 to resample. "
            "Use more films, or give the split more of them."
        )
    generator = np.random.default_rng(seed)
    groups = min(len(names), JACKKNIFE) if method == "bca" else 0
    weights = np.ones((len(names), 1 + replicates + groups), dtype=np.uint16)
    for column in range(1, 1 + replicates):
        drawn = generator.integers(len(names), size=len(names))
        weights[:, column] = np.bincount(drawn, minlength=len(names))
    if groups:
        # Patients in a random order, dealt out: groups of the same size but for one.
        dealt = np.arange(len(names)) % groups
        weights[generator.permutation(len(names)), 1 + replicates + dealt] = 0
    return Resamples(patient, weights, replicates, confidence, method)


def levels(confidence: float, patients: float) -> Array:
    """Levels of the quantiles of a percentile interval, widened for few patients; see `Resamples.interval`."""
    tail = stdtrit(max(patients - 1, 1.0), (1 - confidence) / 2) * np.sqrt(_widening(patients))
    return np.asarray(ndtr(np.array([tail, -tail])))


def _widening(patients: float) -> float:
    """What the variance over resamples is short of."""
    return max(patients, 2.0) / (max(patients, 2.0) - 1)


def bca_levels(value: float, drawn: Array, left_out: Array, ends: Array) -> Array:
    """Levels of the quantiles that stand for `ends` in a BCa interval (Efron, 1987).

    Args:
        value: the metric of the sample.
        drawn: finite values of the replicates.
        left_out: values without each group of patients; those that are not finite are left out.
        ends: levels of a percentile interval.
    """
    below = (np.sum(drawn < value) + 0.5 * np.sum(drawn == value)) / drawn.size
    # A value outside all replicates would ask for a quantile beyond them.
    bias = ndtri(np.clip(below, 1 / (drawn.size + 1), drawn.size / (drawn.size + 1)))
    left_out = left_out[np.isfinite(left_out)]
    pull = left_out.mean() - left_out if left_out.size else np.zeros(1)
    spread = np.sum(pull**2) ** 1.5
    acceleration = np.sum(pull**3) / (6 * spread) if spread > 0 else 0.0
    shifted = bias + np.clip(ndtri(ends), -8, 8)
    # Far out, the approximation turns back on itself.
    return np.asarray(ndtr(bias + shifted / np.maximum(1 - acceleration * shifted, 0.1)))


def holm(p_values: Array) -> Array:
    """Holm's adjusted p values (1979), for all that are not NaN; NaN stays."""
    p_values = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full(p_values.shape, np.nan)
    tested = np.flatnonzero(~np.isnan(p_values))
    order = tested[np.argsort(p_values[tested], kind="stable")]
    steps = p_values[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1) if len(order) else steps
    return adjusted
