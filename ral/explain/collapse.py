"""The closed-form ideal of neural collapse for several findings per image, and the distance to it.

For features H and classifier W that are free to minimise |W H − Y|² / 2N + λw |W|² / 2 + λh |H|² / 2 (Dang et al.,
ICML 2023, for one label per image), let Y Yᵀ = U diag(e) Uᵀ be the co-occurrences and t = N √(λw λh). Then W Wᵀ is
U diag(max(√e − t, 0)) Uᵀ up to a factor. A finding that occurs with no other has e = n, its positives, and vanishes if
n ≤ t²: minority collapse. With a bias, the labels are centred first.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

Array = NDArray[Any]

# Values of t at which the fit starts its search.
GRID = 512


class Ideal:
    """The optimum for given training labels [images, findings]: 1, 0, NaN where unknown.

    An unknown label counts as the finding's prevalence, so that it moves nothing.
    """

    def __init__(self, targets: Array) -> None:
        known = ~np.isnan(targets)
        positives = np.nansum(targets, axis=0)
        prevalence = positives / np.maximum(known.sum(axis=0), 1)
        centred = np.where(known, targets - prevalence, 0.0)
        self._set(centred.T @ centred, positives)

    @classmethod
    def of_cooccurrence(cls, cooccurrence: Array, positives: Array) -> "Ideal":
        """The optimum without a bias, for Y Yᵀ [findings, findings] and the positives of each finding."""
        ideal = cls.__new__(cls)
        ideal._set(cooccurrence, positives)
        return ideal

    def _set(self, cooccurrence: Array, positives: Array) -> None:
        values, self._vectors = np.linalg.eigh(cooccurrence)
        self._values, self.positives = np.maximum(values, 0.0), positives

    @property
    def largest(self) -> float:
        """The t from which on every finding vanishes."""
        return float(np.sqrt(self._values[-1]))

    def classifier(self, t: float) -> Array:
        """Gram matrix of the classifier's vectors [findings, findings], up to a factor."""
        kept = np.maximum(np.sqrt(self._values) - t, 0.0)
        gram: Array = (self._vectors * kept) @ self._vectors.T
        return gram

    def class_means(self, t: float) -> Array:
        """Gram matrix of the class means, relative to the mean of all images [findings, findings], up to a factor;
        0 for a finding without positives.
        """
        kept = np.maximum(np.sqrt(self._values) - t, 0.0) * self._values
        scale = np.where(self.positives > 0, 1 / np.maximum(self.positives, 1), 0.0)
        gram: Array = scale[:, None] * ((self._vectors * kept) @ self._vectors.T) * scale
        return gram

    def fit(self, vectors: Array) -> float:
        """The t whose ideal is nearest to the classifier's vectors [findings, width].

        The penalties of a training are not those of the formula (the features have none of their own), so t is
        estimated, not computed.
        """
        measured = vectors @ vectors.T

        def distance_at(t: float) -> float:
            return distance(measured, self.classifier(t))

        grid = np.linspace(0, self.largest, GRID, endpoint=False)
        best = int(np.argmin([distance_at(t) for t in grid]))
        around = grid[max(best - 1, 0)], grid[best + 1] if best + 1 < GRID else self.largest
        found = minimize_scalar(distance_at, bounds=around, method="bounded", options={"xatol": 1e-9})
        return float(found.x) if found.fun < distance_at(grid[best]) else float(grid[best])


def distance(measured: Array, ideal: Array) -> float:
    """Frobenius distance of two Gram matrices, each scaled to length 1: 0 for equal shapes, √2 for nothing in common;
    NaN if one of them is 0 or not finite.
    """
    lengths = float(np.linalg.norm(measured)), float(np.linalg.norm(ideal))
    if not all(np.isfinite(lengths)) or min(lengths) == 0:
        return float("nan")
    return float(np.linalg.norm(measured / lengths[0] - ideal / lengths[1]))
