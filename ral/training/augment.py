"""Random flips, rotations, shifts and zooms: one affine resampling of the whole batch, on the batch's device."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ral.config.train import AugmentConfig


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
    angle = draws[:, 0] * math.radians(config.rotate)
    scale = 1 + draws[:, 1] * config.zoom
    shift = draws[:, 2:4] * 2 * config.shift  # affine_grid's coordinates span two units
    mirror = torch.where((draws[:, 4] + 1) / 2 < config.flip, -1.0, 1.0)
    cos, sin = scale * torch.cos(angle), scale * torch.sin(angle)
    top = torch.stack([cos * mirror, -sin, shift[:, 0]], 1)
    bottom = torch.stack([sin * mirror, cos, shift[:, 1]], 1)
    return torch.stack([top, bottom], 1)


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
