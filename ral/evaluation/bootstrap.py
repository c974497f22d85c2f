"""Cluster bootstrap over patients (the images of a patient are not independent), and intervals from it.

Each resampled metric is an array of values (`BootstrapDistribution`), one per column of `Resamples.weights`: the sample
itself, its replicates, and, for BCa, the leave-out samples. Means and differences of metrics are means and differences
of such arrays, so all values come from the same resamples.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.special import expit, logit, ndtr, ndtri, stdtr, stdtrit

from ral.errors import UserError
from ral.evaluation.exact import clopper_pearson, effective_trials, f1_of, jaccard
from ral.evaluation.metrics import BLOCK
from ral.evaluation.results import NO_INTERVAL, Interval

Array = NDArray[Any]
Method = Literal["percentile", "bca"]

# Maximum number of leave-out groups for the acceleration of BCa; with at most this many patients, each is a group.
JACKKNIFE = 1000


# No interval with fewer contributing patients, except for plain proportions.
MIN_PATIENTS = 5
# Nor with fewer effective patients: if nearly all images are of one patient, nothing is known about other patients.
MIN_EFFECTIVE_PATIENTS = 1.5

# Lower limit of p values, so that none is reported as 0.
MIN_P = 1e-6

# share: a proportion of images. auroc: AUROC. f1: 2 TP / (2 TP + FP + FN). rank: any other metric in [0, 1].
# free: unbounded. difference: of two metrics; nearly symmetric, so BCa's corrections for bias and skew would
# only add noise.
Scale = Literal["share", "f1", "auroc", "rank", "free", "difference"]


@dataclass(frozen=True)
class Support:
    """Sample size of a metric: the images in its denominator and their patients."""

    patients: int
    effective: float
    """Effective number of patients: square of the sum over the sum of squares of their images (Kish, 1965)."""
    images: int

    @staticmethod
    def of(counts: Array) -> "Support":
        """From the number of images of each patient [patients]."""
        counts = np.asarray(counts, dtype=np.float64)
        if not counts.any():
            return NO_SUPPORT
        return Support(
            int(np.count_nonzero(counts)), float(counts.sum() ** 2 / np.sum(counts**2)), int(counts.sum())
        )


NO_SUPPORT = Support(0, 0.0, 0)


@dataclass(frozen=True)
class BootstrapDistribution:
    """A metric in every column of the resamples."""

    values: Array
    """float64 [columns]; NaN where the metric is not defined."""
    support: Support
    scale: Scale = "rank"
    unseen: tuple[float, float] | None = None
    """Uncertainty below and above the value that the replicates do not show; see `Resamples.unseen`."""
    inflation: float = 0.0
    """Upward bias of the value by chance; the lower end of the interval is lowered by it."""


class Paired(NamedTuple):
    """Two metrics on the same resamples."""

    first: float
    second: float
    difference: float | None
    """first − second, with its interval."""
    low: float | None
    high: float | None
    p: float
    """Of no difference; NaN if it cannot be tested."""


@dataclass(frozen=True)
class Resamples:
    """The patients of the rows, and how often each patient is in each resample."""

    patient: Array
    """Number of each row's patient, int64 [rows]."""
    weights: Array
    """Column 0 is the sample itself, followed by the replicates and (BCa) the leave-out samples;
    uint16 [patients, columns]."""
    replicates: int
    confidence: float
    method: Method

    @property
    def patients(self) -> int:
        """Number of patients."""
        return len(self.weights)

    def rows(self, chosen: Array) -> "Resamples":
        """The same resamples, restricted to some rows (bool [rows]) and their patients."""
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

    def counts(self, rows: Array) -> Array:
        """Number of each patient's rows in a mask (bool [rows]), int64 [patients]."""
        return np.bincount(self.patient[rows], minlength=self.patients)

    def support(self, labels: Array) -> Support:
        """Sample size of a ranking metric: the class (positive or negative) with fewer effective patients.

        Args:
            labels: 1, 0 or NaN [rows].
        """
        sides = [Support.of(self.counts(labels == label)) for label in (1, 0)]
        return min(sides, key=lambda side: side.effective)

    def interval(self, sampled: BootstrapDistribution) -> Interval:
        """Value and interval of a metric; None where there is none. The only place that computes intervals.

        A proportion has the exact interval of `exact.effective_trials`, and so has F1 through the Jaccard
        index. For all other metrics, the ends are quantiles of the finite replicates, at the levels of a t
        distribution with the effective number of patients n, widened by the square root of n / (n - 1)
        (Hesterberg, 2015), because resamples of few patients vary less than new samples would. `unseen` is
        added in quadrature. AUROC has the t interval of its logit, with the same widening: near 1, quantiles
        of few positives start too high.
        """
        value = float(sampled.values[0])
        drawn = self.drawn(sampled)
        if not np.isfinite(value):
            return NO_INTERVAL
        if sampled.scale in ("share", "f1"):
            return Interval(value, *self._exact(sampled))
        support = sampled.support
        if drawn.size == 0 or support.patients < MIN_PATIENTS or support.effective < MIN_EFFECTIVE_PATIENTS:
            return Interval(value, None, None)
        if sampled.scale == "auroc" and 0 < value < 1:
            return Interval(value, *self._on_logit_scale(value, drawn, support.effective))
        ends = levels(self.confidence, support.effective)
        if self.method == "bca" and sampled.scale != "difference":
            ends = bca_levels(value, drawn, sampled.values[1 + self.replicates :], ends)
        low, high = np.quantile(drawn, ends)
        below, above = self.unseen(sampled)
        if below:
            low = value - np.hypot(max(value - low, 0.0), below)
        if above:
            high = value + np.hypot(max(high - value, 0.0), above)
        low -= sampled.inflation
        if sampled.scale in ("auroc", "rank"):
            low, high = max(low, 0.0), min(high, 1.0)
        return Interval(value, float(low), float(high))

    def _on_logit_scale(self, value: float, drawn: Array, patients: float) -> tuple[float, float]:
        """The t interval of the logit of a metric between 0 and 1, by the delta method (Pepe, 2003)."""
        error = np.sqrt(np.var(drawn) * _widening(patients)) / (value * (1 - value))
        reach = -stdtrit(max(patients - 1, 1.0), (1 - self.confidence) / 2) * error
        low, high = expit(logit(value) + np.array([-reach, reach]))
        return float(low), float(high)

    def _exact(self, sampled: BootstrapDistribution) -> tuple[float, float]:
        """The interval of a proportion, or of F1."""
        values = jaccard(sampled.values) if sampled.scale == "f1" else sampled.values
        trials = self.trials(values, sampled.support)
        low, high = clopper_pearson(float(values[0]), trials, self.confidence)
        return (f1_of(low), f1_of(high)) if sampled.scale == "f1" else (low, high)

    def trials(self, share: Array, support: Support) -> float:
        """Effective number of independent images of a proportion [columns]; see `exact.effective_trials`."""
        drawn = share[1 : 1 + self.replicates]
        drawn = drawn[np.isfinite(drawn)]
        variance = float(np.var(drawn)) * _widening(support.effective) if drawn.size else 0.0
        return effective_trials(float(share[0]), variance, support.effective, support.images, self.confidence)

    def unseen(self, sampled: BootstrapDistribution) -> tuple[float, float]:
        """Uncertainty below and above the value of a metric that its replicates do not show.

        If the replicates do not vary (no positive is found, or all are), they carry no information about the error; the
        width of the exact interval is used instead. Means and differences combine that of their members.
        """
        value, drawn = float(sampled.values[0]), self.drawn(sampled)
        if sampled.unseen is not None:
            return sampled.unseen
        if sampled.scale in ("free", "difference") or not np.isfinite(value) or np.any(drawn != value):
            return 0.0, 0.0
        if sampled.scale in ("auroc", "rank") and value not in (0, 1):
            return 0.0, 0.0
        low, high = self._exact(sampled)
        return value - low, high - value

    def difference(
        self, first: BootstrapDistribution, second: BootstrapDistribution
    ) -> BootstrapDistribution:
        """`first` minus `second`, on the same resamples."""
        (first_below, first_above), (below, above) = self.unseen(first), self.unseen(second)
        return BootstrapDistribution(
            first.values - second.values,
            min(first.support, second.support, key=lambda support: support.effective),
            "difference",
            (float(np.hypot(first_below, above)), float(np.hypot(first_above, below))),
        )

    def paired(
        self,
        first: BootstrapDistribution,
        second: BootstrapDistribution,
        difference: BootstrapDistribution | None = None,
    ) -> "Paired":
        """Two metrics of the same resamples, with `difference` or, without it, that of `self.difference`."""
        drawn = self.difference(first, second) if difference is None else difference
        gap = self.interval(drawn)
        ends = (float(first.values[0]), float(second.values[0]))
        return Paired(*ends, gap.value, gap.low, gap.high, self.p_value(drawn))

    def bias(self, values: Array) -> float:
        """Jackknife estimate of the upward bias of the sample's value; 0 without leave-out samples.

        Only valid for smooth metrics, in which each patient has a small and proportional influence.
        """
        left_out = values[1 + self.replicates :]
        left_out = left_out[np.isfinite(left_out)]
        return float((len(left_out) - 1) * (left_out.mean() - values[0])) if len(left_out) else 0.0

    def drawn(self, sampled: BootstrapDistribution) -> Array:
        """The finite values of the replicates."""
        values = sampled.values[1 : 1 + self.replicates]
        return values[np.isfinite(values)]

    def p_value(self, difference: BootstrapDistribution, minimum_variance: float = 0.0) -> float:
        """Two-sided p value of a t test for no difference, with the spread of the replicates as standard error, or NaN.

        Args:
            difference: the difference in every column.
            minimum_variance: lower limit of the variance (a share of 10 out of 10 has no spread at all).
        """
        value, drawn = float(difference.values[0]), self.drawn(difference)
        support = difference.support
        if not np.isfinite(value) or drawn.size < 2:
            return float("nan")
        if support.patients < MIN_PATIENTS or support.effective < MIN_EFFECTIVE_PATIENTS:
            return float("nan")
        # Only the side towards 0 matters, as for that end of the interval.
        below, above = self.unseen(difference)
        unseen_error = (below if value > 0 else above) / ndtri(0.5 + self.confidence / 2)
        variance = max(float(np.var(drawn)), minimum_variance) * _widening(support.effective)
        error = np.hypot(np.sqrt(variance), unseen_error)
        if error == 0:
            return 1.0 if value == 0 else float("nan")
        return max(float(2 * stdtr(max(support.effective - 1, 1.0), -abs(value) / error)), MIN_P)

    def mean(self, parts: Sequence[BootstrapDistribution]) -> BootstrapDistribution:
        """Mean of several metrics, each of which has a value.

        Where a metric is undefined in a replicate (its images were not drawn), the sample's value is used, so that the
        set of averaged metrics does not vary. The effective number of patients is Satterthwaite's, limited to the
        maximum of the members, because the same patients contribute to all of them. A metric of one patient counts as
        one of two.
        """
        if not parts:
            return BootstrapDistribution(np.full(self.weights.shape[1], np.nan), NO_SUPPORT)
        mean = np.mean(
            [np.where(np.isfinite(part.values), part.values, part.values[0]) for part in parts], axis=0
        )
        spreads = np.array([np.var(self.drawn(part)) if self.drawn(part).size else 0.0 for part in parts])
        freedom = np.array([max(part.support.effective - 1, 1.0) for part in parts])
        varies = spreads.sum() > 0
        effective = spreads.sum() ** 2 / np.sum(spreads**2 / freedom) if varies else freedom.min()
        support = Support(
            max(part.support.patients for part in parts),
            float(min(effective, freedom.max())) + 1,
            max(part.support.images for part in parts),
        )
        unseen = np.sqrt(np.sum(np.square([self.unseen(part) for part in parts]), axis=0)) / len(parts)
        return BootstrapDistribution(
            mean,
            support,
            "free" if any(part.scale in ("free", "difference") for part in parts) else "rank",
            (float(unseen[0]), float(unseen[1])),
            float(np.mean([part.inflation for part in parts])),
        )


def draw(
    patients: Array, replicates: int, seed: int, confidence: float = 0.95, method: Method = "percentile"
) -> Resamples:
    """Draw the resamples of the rows' patients.

    A replicate draws as many patients as there are, with replacement; all rows of a patient are included as
    often as the patient was drawn. The draw depends on the set of ids and on `seed`, not on the order of the
    rows.

    Args:
        patients: patient id of each row, text [rows].
        replicates: number of resamples.
        seed: seed of the draw.
        confidence: coverage of the intervals.
        method: type of bootstrap interval.

    Raises:
        UserError: fewer than two patients.
    """
    names, patient = np.unique(patients, return_inverse=True)
    if len(names) < 2:
        raise UserError(
            f"The scored images are of {len(names)} patient(s); bootstrap intervals need at least 2. "
            "Use more images, or assign more patients to the split."
        )
    generator = np.random.default_rng(seed)
    groups = min(len(names), JACKKNIFE) if method == "bca" else 0
    weights = np.ones((len(names), 1 + replicates + groups), dtype=np.uint16)
    for column in range(1, 1 + replicates):
        drawn = generator.integers(len(names), size=len(names))
        weights[:, column] = np.bincount(drawn, minlength=len(names))
    if groups:
        # Patients in random order, assigned to groups of equal size (± 1).
        group_of = np.arange(len(names)) % groups
        weights[generator.permutation(len(names)), 1 + replicates + group_of] = 0
    return Resamples(patient, weights, replicates, confidence, method)


def levels(confidence: float, patients: float) -> Array:
    """Levels of the quantiles of a percentile interval, widened for few patients; see `Resamples.interval`."""
    tail = stdtrit(max(patients - 1, 1.0), (1 - confidence) / 2) * np.sqrt(_widening(patients))
    return np.asarray(ndtr(np.array([tail, -tail])))


def _widening(patients: float) -> float:
    """Factor by which the variance over resamples is too small."""
    return max(patients, 2.0) / (max(patients, 2.0) - 1)


def bca_levels(value: float, drawn: Array, left_out: Array, ends: Array) -> Array:
    """Quantile levels that replace `ends` in a BCa interval (Efron, 1987).

    Args:
        value: the metric of the sample.
        drawn: finite values of the replicates.
        left_out: values without each group of patients; non-finite ones are ignored.
        ends: levels of a percentile interval.
    """
    below = (np.sum(drawn < value) + 0.5 * np.sum(drawn == value)) / drawn.size
    # Clipped, because a value outside all replicates would need a quantile beyond them.
    bias = ndtri(np.clip(below, 1 / (drawn.size + 1), drawn.size / (drawn.size + 1)))
    left_out = left_out[np.isfinite(left_out)]
    pull = left_out.mean() - left_out if left_out.size else np.zeros(1)
    spread = np.sum(pull**2) ** 1.5
    acceleration = np.sum(pull**3) / (6 * spread) if spread > 0 else 0.0
    shifted = bias + np.clip(ndtri(ends), -8, 8)
    # Lower limit, because the approximation is not monotonic in the far tails.
    return np.asarray(ndtr(bias + shifted / np.maximum(1 - acceleration * shifted, 0.1)))


def holm(p_values: Array) -> Array:
    """Holm-adjusted p values (1979); NaN stays NaN and is not counted."""
    p_values = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full(p_values.shape, np.nan)
    tested = np.flatnonzero(~np.isnan(p_values))
    order = tested[np.argsort(p_values[tested], kind="stable")]
    steps = p_values[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1) if len(order) else steps
    return adjusted
