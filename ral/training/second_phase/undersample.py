"""Random undersampling of frequent findings (Buda, Maki and Mazurowski, Neural Networks 2018)."""

import numpy as np

from ral.config.second_phase import UndersampleOptions
from ral.training.second_phase.base import Array, LinearHead, TrainingSet, fit_labels


def fit(options: UndersampleOptions, train: TrainingSet, seed: int) -> LinearHead:
    """The head fitted on the images that are kept."""
    return fit_labels(train, kept(train.targets, options.cap, seed).astype(float), options.l2)


def kept(targets: Array, cap: float, seed: int) -> Array:
    """Which images are kept, bool [images].

    The limit is `cap` × the positives of the rarest finding that has any. From the rarest finding to the most
    frequent, random images are kept until the finding reaches the limit; those that were kept for a rarer
    finding count. A finding is therefore above the limit only through images of rarer findings. Images
    without a finding come last, with the same limit.
    """
    rng = np.random.default_rng(seed)
    positive = targets == 1
    counts = positive.sum(axis=0)
    keep = np.zeros(len(targets), bool)
    if not counts.any():
        return ~keep
    limit = int(cap * counts[counts > 0].min())
    groups = [positive[:, index] for index in np.argsort(counts, kind="stable")]
    for members in [*groups, ~positive.any(axis=1)]:
        missing = max(limit - np.count_nonzero(members & keep), 0)
        keep[rng.permutation(np.flatnonzero(members & ~keep))[:missing]] = True
    return keep
