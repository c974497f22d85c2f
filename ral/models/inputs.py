"""The input of a network: pixels standardised, in the memory format in which convolutions are fast."""

from typing import Protocol

import torch
from torch import Tensor


class PixelStatistics(Protocol):
    """What standardises images: `ral.data.dataset_info.DatasetInfo` and `ral.models.info.ModelInfo` have it."""

    @property
    def pixel_mean(self) -> float:
        """Mean of the training pixels, in gray levels."""

    @property
    def pixel_deviation(self) -> float:
        """Standard deviation of the training pixels, in gray levels."""


def normalised(pixels: Tensor, statistics: PixelStatistics) -> Tensor:
    """uint8 [images, size, size] to float32 [images, 1, size, size], standardised by the training images'
    mean and SD.
    """
    # Convert first: torch's mixed uint8 and float arithmetic is seven times slower on a CPU, with identical
    # results.
    images = pixels.unsqueeze(1).to(torch.float32)
    return images.sub_(statistics.pixel_mean).div_(statistics.pixel_deviation)


def channels_last(images: Tensor) -> Tensor:
    """Images [batch, channels, height, width] in channels_last memory format.

    Images of one channel are in both formats at once; convolutions take them for the default one unless the strides
    say otherwise.
    """
    images = images.contiguous(memory_format=torch.channels_last)
    if images.shape[1] > 1:
        return images
    *_, height, width = images.shape
    return images.as_strided(images.shape, (height * width, 1, width, 1))
