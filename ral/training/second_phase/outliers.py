"""Local outlier factor of the features of one finding's positives."""

import numpy as np
from sklearn.neighbors import LocalOutlierFactor

from ral.training.second_phase.base import Array


def local_outlier_factor(features: Array, neighbours: int) -> Array:
    """Local outlier factor (Breunig et al., SIGMOD 2000) of each row of features [images, width]: about 1 inside a
    cluster, larger outside. All 1 with fewer than 3 images, where no density can be estimated.
    """
    if len(features) < 3:
        return np.ones(len(features))
    estimator = LocalOutlierFactor(n_neighbors=min(neighbours, len(features) - 1), algorithm="brute")
    factors: Array = -estimator.fit(features).negative_outlier_factor_
    return factors
