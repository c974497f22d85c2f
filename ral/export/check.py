"""Compares an exported model with the network that it was made from, on phantom images drawn from a fixed seed."""

import numpy as np
import torch
from torch import Tensor, nn

from ral.config.data import PhantomConfig
from ral.errors import UserError
from ral.inference.exported import Logits

SEED, IMAGES = 20, 8
TOLERANCE = 1e-4

# Phantoms cannot be drawn smaller.
_SMALLEST = 48


def phantom_images(size: int) -> Tensor:
    """The images of the check: uint8 [IMAGES, size, size]."""
    from ral.data.images.resize import to_square
    from ral.phantom.population import draw_population
    from ral.phantom.signs import draw_image

    drawn = max(size, _SMALLEST)
    population = draw_population(PhantomConfig(images=200, size=drawn, floor=0.01, seed=SEED))
    images = [to_square(draw_image(image, drawn, SEED), 0, 255, size) for image in population[:IMAGES]]
    return torch.from_numpy(np.stack(images))


def largest_difference(network: nn.Module, exported: Logits, images: Tensor) -> float:
    """Largest absolute difference of a logit, for all images in one batch and for the first one alone.

    Args:
        network: in eval mode, on the CPU.
        exported: the exported model.
        images: standardised images float32 [batch, 1, size, size].

    Raises:
        UserError: a difference is above `TOLERANCE` or not a number.
    """
    with torch.no_grad():
        differences = [(network(part) - exported(part)).abs().max() for part in (images, images[:1])]
    difference = float(torch.stack(differences).max())
    if not difference <= TOLERANCE:
        raise UserError(
            f"The exported model's logits differ from the network's by up to {difference:.2e} on phantom images; at "
            f"most {TOLERANCE:g} is allowed. Nothing was written. Use another format, and please report "
            "model.backbone and model.head with the versions of torch and timm.",
            kind="bug",
        )
    return difference
