"""Losses that set positives against negatives instead of each label against zero: two-way and ZLPR."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ral.config.losses import TwoWayOptions, ZLPROptions
from ral.losses.base import Loss, known_labels

# Stands for minus infinity, whose differences and products would be no numbers.
NEVER = -1e30


class TwoWay(Loss[TwoWayOptions]):
    """Two-way loss (Kobayashi, CVPR 2023): the hardest positives against the hardest negatives, per finding and per image.

    "mean" adds the mean over findings and the mean over images, of those that have a positive; "sum" adds the sums;
    "none" gives the findings' values, then the images', 0 for those without a positive. Images of a batch act on each
    other, so the loss does depend on how a batch is shared out.
    """

    options_model = TwoWayOptions
    by_label = separable = False

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        x, positive, known = known_labels(logits, targets)
        tp, tn = self.options.tp, self.options.tn
        pulls = (-x / tp).masked_fill(~positive, NEVER)
        pushes = (x / tn).masked_fill(positive | ~known, NEVER)
        values, means = [], []
        for along in (0, 1):
            there = positive.any(along)
            contrast = tp * torch.logsumexp(pulls, along) + tn * torch.logsumexp(pushes, along)
            value = torch.where(there, F.softplus(contrast.masked_fill(~there, 0.0)), 0.0)
            values.append(value)
            means.append(value.sum() / there.sum().clamp(min=1))
        if self.reduction == "none":
            return torch.cat(values)
        return means[0] + means[1] if self.reduction == "mean" else values[0].sum() + values[1].sum()


class ZLPR(Loss[ZLPROptions]):
    """ZLPR (Su et al., 2022): log(1 + Σ e^x over negatives) + log(1 + Σ e^−x over positives), one value per image.

    "mean" is over images with a known label; "none" gives a value per image.
    """

    options_model = ZLPROptions
    by_label = False

    def units(self, targets: Tensor) -> int:
        """What "mean" divides by: the images with a known label."""
        return int((targets == targets).any(-1).sum())

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        x, positive, known = known_labels(logits, targets)
        zero = x.new_zeros((*x.shape[:-1], 1))
        pushes = torch.cat([zero, x.masked_fill(positive | ~known, NEVER)], -1)
        pulls = torch.cat([zero, (-x).masked_fill(~positive, NEVER)], -1)
        loss = torch.logsumexp(pushes, -1) + torch.logsumexp(pulls, -1)
        if self.reduction == "none":
            return loss
        images = known.any(-1).sum().clamp(min=1)
        return loss.sum() if self.reduction == "sum" else loss.sum() / images
