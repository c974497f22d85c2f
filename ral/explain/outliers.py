"""Local outlier factor of the features of one finding's positives."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.neighbors import LocalOutlierFactor

# Local outlier factor above which an image is an outlier (scikit-learn's limit of contamination="auto").
OUTLIER = 1.5


def local_outlier_factor(features: NDArray[Any], neighbours: int) -> NDArray[Any]:
    """Local outlier factor (Breunig et al., SIGMOD 2000) of each row of features [images, width]: about 1 inside a
    cluster, larger outside. All 1 with fewer than 3 images, where no density can be estimated.
    """
    if len(features) < 3:
        return np.ones(len(features))
    estimator = LocalOutlierFactor(n_neighbors=min(neighbours, len(features) - 1), algorithm="brute")
    factors: NDArray[Any] = -estimator.fit(features).negative_outlier_factor_
    return factors
