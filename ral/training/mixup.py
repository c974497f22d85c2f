"""Mixup (Zhang et al., ICLR 2018): an image and another of its global batch become their weighted mean."""

from typing import NamedTuple

import numpy as np
from torch import Tensor


class Mixture(NamedTuple):
    """How the images of a global batch are mixed."""

    share: float
    """Share of each image in its mixture; the rest is its partner's."""
    partners: np.ndarray
    """Position in the global batch of each image's partner, int64 [images]; a permutation."""


def draw_mixture(images: int, alpha: float, seed: int) -> Mixture:
    """Draw the share from Beta(alpha, alpha) and the partners, one draw for a global batch.

    Partners may be in another process's part of the batch, so that a process reads their pixels itself.
    """
    rng = np.random.default_rng(seed)
    return Mixture(float(rng.beta(alpha, alpha)), rng.permutation(images))


def mixed(images: Tensor, share: float) -> Tensor:
    """Mix the first half of images with the second half: [2 n, ...] to [n, ...]."""
    own, partners = images.chunk(2)
    return share * own + (1 - share) * partners
