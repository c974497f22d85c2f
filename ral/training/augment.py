"""Random flips, rotations, shifts and zooms: one affine resampling per image, on the batch's device."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ral.config.train import AugmentConfig
from ral.models.inputs import PixelStatistics, normalised

# Pixels that a CPU augments at a time. The grid and the copies of so few images stay in the processor's cache; those
# of a whole batch are written to memory and read back, at less than half the speed.
CPU_PIXELS = 1 << 19


def draw_transforms(rows: int, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """Draw one random affine map per image.

    Args:
        rows: number of images.
        config: ranges of the transforms.
        generator: a CPU generator, so that every machine draws the same values.

    Returns:
        float32 [rows, 2, 3], as `torch.nn.functional.affine_grid` takes them.
    """
    draws = torch.rand(rows, 5, generator=generator) * 2 - 1
    # With numpy: torch's sin and cos start threads of their own when they run in the thread that gathers images, and
    # these take the cores from the training. In double precision, so that every machine rounds alike.
    angle = draws[:, 0].numpy().astype(np.float64) * math.radians(config.rotate)
    scale = 1 + draws[:, 1] * config.zoom
    shift = draws[:, 2:4] * 2 * config.shift  # affine_grid's coordinates span two units
    mirror = torch.where((draws[:, 4] + 1) / 2 < config.flip, -1.0, 1.0)
    cos, sin = (scale * torch.from_numpy(turn(angle).astype(np.float32)) for turn in (np.cos, np.sin))
    top = torch.stack([cos * mirror, -sin, shift[:, 0]], 1)
    bottom = torch.stack([sin * mirror, cos, shift[:, 1]], 1)
    return torch.stack([top, bottom], 1)


def augmented(pixels: Tensor, maps: Tensor, statistics: PixelStatistics) -> Tensor:
    """Standardise images and apply their affine maps.

    Args:
        pixels: uint8 [rows, size, size].
        maps: float32 [rows, 2, 3], from `draw_transforms`.
        statistics: mean and standard deviation of the training pixels.

    Returns:
        float32 [rows, 1, size, size]: the same as `transform` of all `normalised` images at once.
    """
    rows, height, width = pixels.shape
    if pixels.device.type != "cpu":
        return transform(normalised(pixels, statistics), maps)
    images = torch.empty((rows, 1, height, width))
    step = max(1, CPU_PIXELS // (height * width))
    for part, few, few_maps in zip(*(whole.split(step) for whole in (images, pixels, maps)), strict=True):
        part.copy_(transform(normalised(few, statistics), few_maps))
    return images


def transform(images: Tensor, maps: Tensor) -> Tensor:
    """Apply affine maps [rows, 2, 3] to images [rows, 1, size, size]; border pixels are repeated outside the image."""
    height, width = images.shape[-2:]
    x = _pixel_centres(width, images.device)
    y = _pixel_centres(height, images.device).unsqueeze(1)
    a, b, c = maps.to(images.device)[..., None, None].unbind(2)  # each [rows, 2, 1, 1]
    # As affine_grid, but without its matrix product, which TF32 would blur.
    grid = (a * x + (b * y + c)).movedim(1, -1)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _pixel_centres(size: int, device: torch.device) -> Tensor:
    """Coordinates of pixel centres from -1 to 1, as affine_grid has them with align_corners=False."""
    return (2 * torch.arange(size, device=device) + 1) / size - 1
