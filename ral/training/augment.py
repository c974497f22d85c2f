"""Random flips, rotations, shifts and zooms of a batch of images, in one pass on its device."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ral.config.train import AugmentConfig


def draw_transforms(rows: int, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """Draw one affine map per image.

    Args:
        rows: number of images.
        config: how far each change may go.
        generator: on the CPU, so that every machine draws the same.

    Returns:
        float32 [rows, 2, 3], as `torch.nn.functional.affine_grid` takes them.
    """
    draws = torch.rand(rows, 5, generator=generator) * 2 - 1
    angle = draws[:, 0] * math.radians(config.rotate)
    scale = 1 + draws[:, 1] * config.zoom
    shift = draws[:, 2:4] * 2 * config.shift  # affine_grid's coordinates span two units
    side = torch.where((draws[:, 4] + 1) / 2 < config.flip, -1.0, 1.0)
    cos, sin = scale * torch.cos(angle), scale * torch.sin(angle)
    top = torch.stack([cos * side, -sin, shift[:, 0]], 1)
    bottom = torch.stack([sin * side, cos, shift[:, 1]], 1)
    return torch.stack([top, bottom], 1)


def transform(images: Tensor, maps: Tensor) -> Tensor:
    """Apply affine maps [rows, 2, 3] to images [rows, 1, size, size]; what comes in from outside repeats the edge."""
    grid = F.affine_grid(maps.to(images.device), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)
