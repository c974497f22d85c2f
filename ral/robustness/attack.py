"""Attacks on images: projected gradient descent (`ral.models.pgd`) on the score of a finding, or on the loss of all.

An attack on all findings at once cannot make each of them as wrong as an attack on that finding alone: one change of
the pixels serves all. How robust a finding is, an attack on it alone tells.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ral.models.inputs import channels_last
from ral.models.pgd import Bounds, pgd


def attack_each(
    network: nn.Module, images: Tensor, labels: Tensor, bounds: Bounds, steps: int, step: float
) -> Tensor:
    """The worst logit of every image and finding, each under an attack of its own [images, findings].

    The score of a positive is lowered, that of a negative raised; those with an unknown label stay as they are. The
    loss of one label is monotone in its logit, so the logit itself is climbed: its gradient does not vanish.

    Args:
        network: in eval mode, without gradients of its weights.
        images: standardised, [images, 1, size, size].
        labels: 1, 0 or NaN [images, findings].
        bounds: of the pixels, see `gray_bounds`.
        steps: gradient steps.
        step: length of a step, in the units of the images.
    """
    worst = _logits(network, images)
    for column in range(labels.shape[1]):
        known = ~labels[:, column].isnan()
        if known.any():
            own = Bounds(bounds.low[known], bounds.high[known])
            worst[known, column] = _worst(
                network, images[known], labels[known, column], column, own, steps, step
            )
    return worst


def _worst(
    network: nn.Module, images: Tensor, labels: Tensor, column: int, bounds: Bounds, steps: int, step: float
) -> Tensor:
    """The worst logits of one finding [images]; arguments as of `attack_each`, with known labels only."""
    sign = torch.where(labels > 0.5, 1.0, -1.0).to(images.dtype)
    lowest = torch.full_like(sign, torch.inf)

    def gain(changed: Tensor) -> Tensor:
        nonlocal lowest
        margin: Tensor = sign * network(channels_last(changed))[:, column]
        lowest = torch.minimum(lowest, margin.detach())
        return -margin.sum()

    last = pgd(gain, images, bounds, steps, step)
    with torch.no_grad():
        gain(last)
    worst: Tensor = sign * lowest
    return worst


def attack_all(
    network: nn.Module, images: Tensor, labels: Tensor, bounds: Bounds, steps: int, step: float
) -> Tensor:
    """The logits of images that were changed so as to raise the sum of the cross-entropies of all known labels
    [images, findings]; arguments as of `attack_each`.
    """
    known, targets = ~labels.isnan(), labels.nan_to_num(0.0)
    worst, highest = _logits(network, images), torch.full_like(images[:, 0, 0, 0], -torch.inf)

    def gain(changed: Tensor) -> Tensor:
        nonlocal worst, highest
        logits = network(channels_last(changed))
        losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        loss = torch.where(known, losses, 0.0).sum(dim=1)
        higher = loss.detach() > highest
        worst = torch.where(higher[:, None], logits.detach(), worst)
        highest = torch.where(higher, loss.detach(), highest)
        return loss.sum()

    last = pgd(gain, images, bounds, steps, step)
    with torch.no_grad():
        gain(last)
    return worst


def _logits(network: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = network(channels_last(images))
    return logits.clone()
