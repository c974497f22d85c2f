"""Resampling of whole patients (the films of one are not independent), and percentile intervals."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def patient_weights(patients: NDArray[Any], replicates: int, seed: int) -> NDArray[np.uint16]:
    """How often each row is in each resample, uint16 [replicates, rows].

    A replicate draws as many patients as there are, with replacement; all rows of a patient come as often as
    the patient was drawn. The draw depends on the set of ids and on `seed`, not on the order of the rows.

    Args:
        patients: patient id of each row, text [rows].
        replicates: number of resamples.
        seed: seed of the draw.
    """
    names, patient_of_row = np.unique(patients, return_inverse=True)
    generator = np.random.default_rng(seed)
    weights = np.empty((replicates, len(patients)), dtype=np.uint16)
    for replicate in weights:
        drawn = generator.integers(len(names), size=len(names))
        replicate[:] = np.bincount(drawn, minlength=len(names))[patient_of_row]
    return weights


def interval(values: NDArray[Any], confidence: float) -> tuple[float, float]:
    """Percentile interval of the finite values [replicates] at `confidence`; NaN if none is finite."""
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        return float("nan"), float("nan")
    low, high = np.quantile(finite, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
