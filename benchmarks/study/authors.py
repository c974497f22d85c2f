"""What the RAL authors' recipe does differently (kalelpark/RAL, as its code runs it; our folds replace its split).

Adam at 1e-4 without schedule, weight decay or clipping; the sum of the loss; flips, rotations up to 15 degrees,
sharpness, erasing; the epoch with the best macro precision at 0.5.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ral.models.inputs import PixelStatistics
from ral.training.batches import Batches
from ral.training.validation import ValidationScores, Validator

# torchvision's: sharpness factor 2 for half of the images; erasing of half of them, with its default sizes.
SHARPNESS, SHARE = 2.0, 0.5
AREA, RATIO = (0.02, 0.33), (0.3, 3.3)
SMOOTH = (1.0, 1.0, 1.0, 1.0, 5.0, 1.0, 1.0, 1.0, 1.0)


class ConstantBatches(Batches):
    """Batches at a constant learning rate."""

    def learning_rate(self, epoch: int, step: int) -> float:
        """The same for every step."""
        return self.phase.learning_rate


class PrecisionValidator(Validator):
    """Selects the epoch by macro precision at a probability of 0.5, in place of macro AP."""

    def scores(self, weights: dict[str, Tensor]) -> ValidationScores | None:
        """Precision in place of AP; None if a logit is not finite."""
        logits = self.scorer.score(weights, self.rows)
        if not np.isfinite(logits).all():
            return None
        return ValidationScores(macro_precision(self.targets, logits), 0.0)


def macro_precision(targets: np.ndarray, logits: np.ndarray) -> float:
    """Precision at a probability of 0.5, mean over findings; 0 for a finding that no image is predicted to have."""
    predicted = logits > 0
    true = (predicted & (targets == 1)).sum(axis=0)
    return float(np.mean(true / np.maximum(1, predicted.sum(axis=0))))


def jittered(images: Tensor, statistics: PixelStatistics, generator: torch.Generator) -> Tensor:
    """Standardised images [images, 1, size, size], half of them sharpened, a rectangle of half of them black.

    Args:
        images: flipped and rotated.
        statistics: that they were standardised with.
        generator: on the CPU, so that every machine draws the same values.
    """
    pixels = images * statistics.pixel_deviation + statistics.pixel_mean
    sharp = torch.rand(len(images), generator=generator) < SHARE
    erased = boxes(len(images), images.shape[-1], generator)
    pixels = torch.where(sharp.to(images.device)[:, None, None, None], sharpened(pixels), pixels)
    pixels = pixels.masked_fill(erased.to(images.device)[:, None], 0.0)
    return (pixels - statistics.pixel_mean) / statistics.pixel_deviation


def sharpened(images: Tensor) -> Tensor:
    """Twice the image minus its smoothed form, within 0 and 255; border pixels stay. [images, 1, size, size]"""
    kernel = torch.tensor(SMOOTH, device=images.device).reshape(1, 1, 3, 3) / sum(SMOOTH)
    smooth = images.clone()
    smooth[..., 1:-1, 1:-1] = F.conv2d(images, kernel)
    return (smooth + SHARPNESS * (images - smooth)).clamp(0, 255)


def boxes(images: int, size: int, generator: torch.Generator) -> Tensor:
    """Where images are erased: a rectangle in half of them, bool [images, size, size]. Rectangles that do not fit are
    cut, where torchvision draws again.
    """
    draws = torch.rand(images, 5, generator=generator)
    area = (AREA[0] + draws[:, 0] * (AREA[1] - AREA[0])) * size * size
    low, high = math.log(RATIO[0]), math.log(RATIO[1])
    ratio = torch.exp(low + draws[:, 1] * (high - low))
    height = torch.sqrt(area * ratio).round().clamp(1, size - 1)
    width = torch.sqrt(area / ratio).round().clamp(1, size - 1)
    top = (draws[:, 2] * (size - height + 1)).floor()
    left = (draws[:, 3] * (size - width + 1)).floor()
    at = torch.arange(size)
    rows = (at >= top[:, None]) & (at < (top + height)[:, None])
    columns = (at >= left[:, None]) & (at < (left + width)[:, None])
    return rows[:, :, None] & columns[:, None, :] & (draws[:, 4] < SHARE)[:, None, None]
