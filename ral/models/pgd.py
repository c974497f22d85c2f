"""Projected gradient descent (Madry et al., ICLR 2018): the change of images within a few gray levels that raises a
function of them most.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ral.models.inputs import PixelStatistics


class Bounds(NamedTuple):
    """Lowest and highest value of each pixel, in the shape and units of the images."""

    low: Tensor
    high: Tensor

    def clip(self, images: Tensor) -> Tensor:
        """The nearest images within the bounds."""
        return torch.minimum(torch.maximum(images, self.low), self.high)


def gray_bounds(images: Tensor, eps: float, statistics: PixelStatistics) -> Bounds:
    """The bounds of a change by at most `eps` gray levels that stays in the gray range, 0 to 255.

    Args:
        images: standardised by the statistics.
        eps: in gray levels.
        statistics: mean and standard deviation of the training pixels.
    """
    mean, deviation = statistics.pixel_mean, statistics.pixel_deviation
    radius = eps / deviation
    low = (images - radius).clamp(min=-mean / deviation)
    high = (images + radius).clamp(max=(255 - mean) / deviation)
    # Rounding, or interpolation by an augmentation, may leave an image slightly outside the gray range.
    return Bounds(torch.minimum(low, images), torch.maximum(high, images))


def pgd(gain: Callable[[Tensor], Tensor], start: Tensor, bounds: Bounds, steps: int, step: float) -> Tensor:
    """Climb by the sign of the gradient, within bounds on each pixel.

    Args:
        gain: scalar function of the images: a sum over images, so that each climbs on its own.
        start: images within the bounds.
        bounds: of each pixel.
        steps: number of steps.
        step: length of a step, in the units of the images.
    """
    images = start
    for _ in range(steps):
        images = images.detach().requires_grad_()
        (slope,) = torch.autograd.grad(gain(images), images)
        images = bounds.clip(images.detach() + step * slope.sign())
    return images.detach()
