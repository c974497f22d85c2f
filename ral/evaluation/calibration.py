"""From raw logits to probabilities: one map per finding, fitted and chosen on validation.

All parametric maps are p = σ(a·log s + b·(−log(1 − s)) + c) with s = σ(logit) and a, b > 0: beta calibration
(Kull et al., 2017). With a = b it is Platt's (a·logit + c), with c = 0 too it is a temperature; with the slope that all
findings share it is the map called shared. The logarithms of a and b are drawn towards the shared slope by a normal
prior of deviation `LOOSE`, so that few positives move them little and many move them freely. Maps only rise, except
that isotonic regression has steps.
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

# From the fewest own numbers to the most: of maps that do as well, the first is taken.
KINDS: tuple[Kind, ...] = ("shared", "temperature", "platt", "beta", "isotonic")

LOOSE = 0.5
FOLDS = 5
# Calibrated scores stay within (0, 1).
EDGE = 1e-6


@dataclass(frozen=True)
class Map:
    """A calibration map; the numbers that its kind has no use for are empty."""

    kind: Kind
    numbers: tuple[float, ...]
    """a, b and c; for isotonic nothing."""
    knots: tuple[tuple[float, float], ...] = ()
    """Isotonic: logit and score, in rising order, with straight lines between and level ends."""

    def apply(self, logits: Array) -> Array:
        """Calibrated scores [rows] of logits [rows]."""
        if self.kind == "isotonic":
            x, y = np.array(self.knots).T
            scores = np.interp(logits, x, y)
        else:
            rising, falling = _features(logits)
            a, b, c = self.numbers
            scores = expit(a * rising + b * falling + c)
        return np.clip(scores, EDGE, 1 - EDGE)

    def short(self) -> "Map":
        """The map with nine significant digits, as it is used and saved: two machines differ further down.

        Logits of knots stay whole: they are not computed, and an image at the edge of a step is to stay on it.
        """
        knots = tuple((x, _short(y)) for x, y in self.knots)
        return Map(self.kind, tuple(_short(number) for number in self.numbers), knots)


def calibrate(
    logits: Array, labels: Array, patients: Array, config: CalibrationConfig, seed: int
) -> list[Map | None]:
    """Fit and choose the map of each finding; None for one without a positive or without a negative image.

    A finding with fewer than `config.own` patients with it, or without it, gets the shared slope and a constant of
    its own. For the others, the kinds are compared by log loss in a cross-validation over patients, and the first of
    `KINDS` is taken whose loss is within one standard error (of the difference, over patients) of the lowest.

    Args:
        logits: raw validation logits [rows, findings].
        labels: 1, 0 or NaN [rows, findings].
        patients: id of each row's patient, text [rows].
        config: from how many positive patients on a map is a finding's own.
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
        least = min(len(np.unique(patient[y == label])) for label in (0, 1))
        kinds = [
            kind for kind in KINDS if least >= config.own and (kind != "isotonic" or least >= config.isotonic)
        ]
        kind = (
            _choose(kinds, x, y, patient, [(out & known, ~out & known, s) for out, s in folds])
            if kinds
            else "shared"
        )
        maps.append(fit(kind, x[known], y[known], slopes).short())
    return maps


def fit(kind: Kind, logits: Array, labels: Array, slopes: tuple[float, float]) -> Map:
    """Fit one kind of map.

    Args:
        kind: see the module.
        logits: of the rows whose label is known [rows].
        labels: 1 or 0 [rows], both of them at least once.
        slopes: see `shared_slopes`.
    """
    if kind == "isotonic":
        return Map(kind, (), _isotonic(logits, labels))
    slope, temperature = slopes
    prior = np.log(temperature if kind == "temperature" else slope)
    rising, falling = _features(logits)
    # Which of log a, log b and c are free, and whether b is a.
    free = {"shared": (False, False, True), "temperature": (True, False, False), "platt": (True, False, True), "beta": (True, True, True)}[kind]  # fmt: skip
    rate = labels.mean()
    start = np.array([prior, prior, 0.0])
    if free[2]:
        start[2] = np.log(rate / (1 - rate)) - np.exp(prior) * logits.mean()

    def loss(values: Array) -> tuple[float, Array]:
        numbers = start.copy()
        numbers[list(free)] = values
        if not free[1]:
            numbers[1] = numbers[0]
        a, b = np.exp(numbers[:2])
        score = a * rising + b * falling + numbers[2]
        wrong = expit(score) - labels
        pull = numbers[:2] - prior
        slope_a, slope_b = a * (wrong @ rising), b * (wrong @ falling)
        if free[1]:
            slopes_of = [slope_a + pull[0] / LOOSE**2, slope_b + pull[1] / LOOSE**2]
            penalty = np.sum(pull**2) / (2 * LOOSE**2)
        else:
            slopes_of = [slope_a + slope_b + pull[0] / LOOSE**2, 0.0]
            penalty = pull[0] ** 2 / (2 * LOOSE**2)
        gradient = np.array([*slopes_of, wrong.sum()])[list(free)]
        return float(np.sum(np.logaddexp(0, score) - labels * score) + penalty), gradient

    found = minimize(loss, start[list(free)], jac=True, method="L-BFGS-B", options=_EXACT).x
    numbers = start.copy()
    numbers[list(free)] = found
    if not free[1]:
        numbers[1] = numbers[0]
    return Map(kind, (float(np.exp(numbers[0])), float(np.exp(numbers[1])), float(numbers[2])))


_EXACT = {"ftol": 1e-14, "gtol": 1e-8, "maxiter": 500, "maxls": 50}


def shared_slopes(logits: Array, labels: Array) -> tuple[float, float]:
    """Slope and inverse temperature that all findings share, by maximum likelihood.

    The slope is fitted beside a constant for every finding, the inverse temperature without.

    Args:
        logits: [rows, findings].
        labels: 1, 0 or NaN [rows, findings]; findings without a positive or without a negative are left out.
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
        wrong = np.where(known, expit(score) - y, 0.0)
        # A weak prior at 1 keeps perfectly separated findings finite.
        total = np.sum(np.where(known, np.logaddexp(0, score) - y * score, 0.0)) + values[0] ** 2 / 2
        gradient = [slope * np.sum(wrong * x) + values[0], *(wrong.sum(axis=0) if constants else ())]
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
    for place, kind in enumerate(kinds):
        for held, kept, slopes in folds:
            scores = fit(kind, logits[kept], labels[kept], slopes).apply(logits[held])
            losses[place, held] = log_losses(scores, labels[held])
    best = losses[losses.sum(axis=1).argmin()]
    for place, kind in enumerate(kinds):
        excess = np.bincount(patient, weights=losses[place] - best)
        if excess.sum() <= np.sqrt(np.sum((excess - excess.mean()) ** 2)):
            return kind
    raise AssertionError("the best kind is within any error of itself")


def log_losses(scores: Array, labels: Array) -> Array:
    """Log loss of each row; of a score of 0 or 1 that of the nearest score within (0, 1)."""
    scores = np.clip(scores, EDGE, 1 - EDGE)
    return np.asarray(-np.log(np.where(labels == 1, scores, 1 - scores)))


def _short(value: float) -> float:
    return float(f"{value:.9g}")


def _features(logits: Array) -> tuple[Array, Array]:
    """log s and −log(1 − s) of s = σ(logit), finite for every logit."""
    return -np.logaddexp(0, -logits), np.logaddexp(0, logits)


def _isotonic(logits: Array, labels: Array) -> tuple[tuple[float, float], ...]:
    """Knots of isotonic regression; the score of a step with k of n positive is (k + ½) / (n + 1), never 0 or 1."""
    x, place, images = np.unique(logits, return_inverse=True, return_counts=True)
    positive = np.bincount(place, weights=labels)
    _, step = np.unique(isotonic_regression(positive / images, sample_weight=images), return_inverse=True)
    scores = np.maximum.accumulate(
        (np.bincount(step, weights=positive) + 0.5) / (np.bincount(step, weights=images) + 1)
    )
    knots: list[tuple[float, float]] = []
    for number, score in enumerate(scores):
        inside = x[step == number]
        knots += [(float(end), float(score)) for end in sorted({inside[0], inside[-1]})]
    return tuple(knots)
