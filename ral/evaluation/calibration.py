"""Calibration of raw logits to probabilities: one map per finding, fitted and selected on validation.

All parametric maps are p = σ(a·log s + b·(−log(1 − s)) + c) with s = σ(logit) and a, b > 0: beta calibration
(Kull et al., 2017). With a = b it is Platt's (a·logit + c), with c = 0 too it is a temperature; with the slope that all
findings share it is the map called shared. A normal prior of deviation `PRIOR_DEVIATION` shrinks the
logarithms of a and b towards the shared slope, strongly with few positives and weakly with many. All maps
increase strictly, except isotonic regression, which is a step function.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.isotonic import isotonic_regression

from ral.config.evaluate import CalibrationConfig

Array = NDArray[Any]
Kind = Literal["shared", "temperature", "platt", "beta", "isotonic"]

# From the fewest to the most free parameters; among equally good maps the first is selected.
KINDS: tuple[Kind, ...] = ("shared", "temperature", "platt", "beta", "isotonic")

PRIOR_DEVIATION = 0.5
FOLDS = 5
# Calibrated scores are clipped to [MIN_SCORE, 1 - MIN_SCORE].
MIN_SCORE = 1e-6


@dataclass(frozen=True)
class Map:
    """A calibration map; fields that its kind does not use are empty."""

    kind: Kind
    numbers: tuple[float, ...]
    """a, b and c; empty for isotonic."""
    knots: tuple[tuple[float, float], ...] = ()
    """Isotonic: pairs of logit and score in ascending order, interpolated linearly, constant beyond the ends."""

    def apply(self, logits: Array) -> Array:
        """Calibrated scores [rows] of logits [rows]."""
        if self.kind == "isotonic":
            x, y = np.array(self.knots).T
            scores = np.interp(logits, x, y)
        else:
            rising, falling = _features(logits)
            a, b, c = self.numbers
            scores = expit(a * rising + b * falling + c)
        return np.asarray(np.clip(scores, MIN_SCORE, 1 - MIN_SCORE))

    def rounded(self) -> "Map":
        """The map rounded to nine significant digits, as it is used and saved: machines differ beyond that.

        Logits of knots are not rounded: they are not computed, and an image at the edge of a step must stay on it.
        """
        knots = tuple((x, _round_digits(y)) for x, y in self.knots)
        return Map(self.kind, tuple(_round_digits(number) for number in self.numbers), knots)


def calibrate(
    logits: Array, labels: Array, patients: Array, config: CalibrationConfig, seed: int
) -> list[Map | None]:
    """Fit and select the map of each finding; None for a finding without positive or without negative images.

    A finding with fewer than `config.own` positive or negative patients gets the shared slope and an individual
    constant. For the others, the kinds are compared by cross-validated log loss (folds of patients): the first of
    `KINDS` is selected whose loss is within one standard error (of the difference, over patients) of the lowest.

    Args:
        logits: raw validation logits [rows, findings].
        labels: 1, 0 or NaN [rows, findings].
        patients: id of each row's patient, text [rows].
        config: minimum numbers of patients for an individual map.
        seed: seed of the folds.
    """
    names, patient = np.unique(patients, return_inverse=True)
    fold = np.random.default_rng(seed).permutation(len(names))[patient] % FOLDS
    slopes = shared_slopes(logits, labels)
    folds = [(fold == number, shared_slopes(logits[fold != number], labels[fold != number]))
             for number in range(FOLDS)]  # fmt: skip
    maps: list[Map | None] = []
    for column in range(logits.shape[1]):
        x, y = logits[:, column], labels[:, column]
        known = ~np.isnan(y)
        if not (np.any(y == 1) and np.any(y == 0)):
            maps.append(None)
            continue
        patients_of_rarer = min(len(np.unique(patient[y == label])) for label in (0, 1))
        kinds = [
            kind
            for kind in KINDS
            if patients_of_rarer >= config.own
            and (kind != "isotonic" or patients_of_rarer >= config.isotonic)
        ]
        kind = (
            _choose(kinds, x, y, patient, [(out & known, ~out & known, s) for out, s in folds])
            if kinds
            else "shared"
        )
        maps.append(fit(kind, x[known], y[known], slopes).rounded())
    return maps


def fit(kind: Kind, logits: Array, labels: Array, slopes: tuple[float, float]) -> Map:
    """Fit one kind of map.

    Args:
        kind: see the module docstring.
        logits: of the rows with a known label [rows].
        labels: 1 or 0 [rows], each at least once.
        slopes: see `shared_slopes`.
    """
    if kind == "isotonic":
        return Map(kind, (), _isotonic(logits, labels))
    slope, temperature = slopes
    prior = np.log(temperature if kind == "temperature" else slope)
    rising, falling = _features(logits)
    # Which of log a, log b and c are free parameters; without a free log b, b = a.
    free = {
        "shared": (False, False, True),
        "temperature": (True, False, False),
        "platt": (True, False, True),
        "beta": (True, True, True),
    }[kind]
    rate = labels.mean()
    start = np.array([prior, prior, 0.0])
    if free[2]:
        start[2] = np.log(rate / (1 - rate)) - np.exp(prior) * logits.mean()

    def loss(values: Array) -> tuple[float, Array]:
        numbers = start.copy()
        numbers[list(free)] = values
        if not free[1]:
            numbers[1] = numbers[0]
        # A line search may try exponents that overflow; the pull towards the prior leads back from the limit.
        a, b = np.exp(np.minimum(numbers[:2], 100.0))
        score = a * rising + b * falling + numbers[2]
        residual = expit(score) - labels
        pull = numbers[:2] - prior
        slope_a, slope_b = a * (residual @ rising), b * (residual @ falling)
        if free[1]:
            gradients = [slope_a + pull[0] / PRIOR_DEVIATION**2, slope_b + pull[1] / PRIOR_DEVIATION**2]
            penalty = np.sum(pull**2) / (2 * PRIOR_DEVIATION**2)
        else:
            gradients = [slope_a + slope_b + pull[0] / PRIOR_DEVIATION**2, 0.0]
            penalty = pull[0] ** 2 / (2 * PRIOR_DEVIATION**2)
        gradient = np.array([*gradients, residual.sum()])[list(free)]
        return float(np.sum(np.logaddexp(0, score) - labels * score) + penalty), gradient

    solution = minimize(loss, start[list(free)], jac=True, method="L-BFGS-B", options=_EXACT).x
    numbers = start.copy()
    numbers[list(free)] = solution
    if not free[1]:
        numbers[1] = numbers[0]
    return Map(kind, (float(np.exp(numbers[0])), float(np.exp(numbers[1])), float(numbers[2])))


_EXACT = {"ftol": 1e-14, "gtol": 1e-8, "maxiter": 500, "maxls": 50}


def shared_slopes(logits: Array, labels: Array) -> tuple[float, float]:
    """Maximum-likelihood slope and inverse temperature shared by all findings.

    The slope is fitted with a constant per finding, the inverse temperature without constants.

    Args:
        logits: [rows, findings].
        labels: 1, 0 or NaN [rows, findings]; findings without a positive or without a negative are ignored.
    """
    used = np.any(labels == 1, axis=0) & np.any(labels == 0, axis=0)
    if not used.any():
        return 1.0, 1.0
    known = ~np.isnan(labels[:, used])
    x = logits[:, used]
    y = np.where(known, labels[:, used], 0.0)

    def loss(values: Array, constants: bool) -> tuple[float, Array]:
        slope = np.exp(values[0])
        score = slope * x + (values[1:] if constants else 0.0)
        residual = np.where(known, expit(score) - y, 0.0)
        # A weak prior at slope 1 keeps the fit finite for perfectly separated findings.
        total = np.sum(np.where(known, np.logaddexp(0, score) - y * score, 0.0)) + values[0] ** 2 / 2
        gradient = [slope * np.sum(residual * x) + values[0], *(residual.sum(axis=0) if constants else ())]
        return float(total), np.array(gradient)

    rate = y.sum(axis=0) / known.sum(axis=0)
    start = np.append(0.0, np.log(rate / (1 - rate)) - np.mean(x, axis=0))
    slope = minimize(loss, start, args=(True,), jac=True, method="L-BFGS-B", options=_EXACT).x[0]
    temperature = minimize(loss, [0.0], args=(False,), jac=True, method="L-BFGS-B", options=_EXACT).x[0]
    return float(np.exp(slope)), float(np.exp(temperature))


def _choose(
    kinds: Sequence[Kind],
    logits: Array,
    labels: Array,
    patient: Array,
    folds: Sequence[tuple[Array, Array, tuple[float, float]]],
) -> Kind:
    """The first kind whose cross-validated log loss is within one standard error of the lowest."""
    losses = np.zeros((len(kinds), len(labels)))
    for index, kind in enumerate(kinds):
        for held_out, fitted, slopes in folds:
            scores = fit(kind, logits[fitted], labels[fitted], slopes).apply(logits[held_out])
            losses[index, held_out] = log_losses(scores, labels[held_out])
    best = losses[losses.sum(axis=1).argmin()]
    for index, kind in enumerate(kinds):
        excess = np.bincount(patient, weights=losses[index] - best)
        if excess.sum() <= np.sqrt(np.sum((excess - excess.mean()) ** 2)):
            return kind
    raise AssertionError("the best kind is always within one standard error of itself")


def log_losses(scores: Array, labels: Array) -> Array:
    """Log loss of each row; scores are clipped to the open interval (0, 1)."""
    scores = np.clip(scores, MIN_SCORE, 1 - MIN_SCORE)
    return np.asarray(-np.log(np.where(labels == 1, scores, 1 - scores)))


def _round_digits(value: float) -> float:
    return float(f"{value:.9g}")


def _features(logits: Array) -> tuple[Array, Array]:
    """log s and −log(1 − s) of s = σ(logit), finite for every logit."""
    return -np.logaddexp(0, -logits), np.logaddexp(0, logits)


def _isotonic(logits: Array, labels: Array) -> tuple[tuple[float, float], ...]:
    """Knots of isotonic regression; the score of a step with k of n positive is (k + ½) / (n + 1), never 0 or 1."""
    x, level_index, images = np.unique(logits, return_inverse=True, return_counts=True)
    positive = np.bincount(level_index, weights=labels)
    _, step = np.unique(isotonic_regression(positive / images, sample_weight=images), return_inverse=True)
    scores = np.maximum.accumulate(
        (np.bincount(step, weights=positive) + 0.5) / (np.bincount(step, weights=images) + 1)
    )
    knots: list[tuple[float, float]] = []
    for number, score in enumerate(scores):
        inside = x[step == number]
        knots += [(float(end), float(score)) for end in sorted({inside[0], inside[-1]})]
    return tuple(knots)
