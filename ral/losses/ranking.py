"""Losses that compare positives with negatives instead of each logit with zero: two-way and ZLPR."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ral.config.losses import TwoWayOptions, ZLPROptions
from ral.losses.base import Loss, known_labels

# Used for minus infinity, whose differences and products would be NaN.
MASKED = -1e30


class TwoWay(Loss[TwoWayOptions]):
    """Two-way loss (Kobayashi, CVPR 2023): the hardest positives against the hardest negatives, per finding
    and per image.

    "mean" is the mean over findings plus the mean over images, of those with a positive; "sum" is the sum of
    both sums; "none" returns the values of the findings, then of the images, 0 for those without a positive.
    Images of a batch interact, so the loss depends on how a batch is split.
    """

    options_model = TwoWayOptions
    by_label = separable = False

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        x, positive, known = known_labels(logits, targets)
        tp, tn = self.options.tp, self.options.tn
        pulls = (-x / tp).masked_fill(~positive, MASKED)
        pushes = (x / tn).masked_fill(positive | ~known, MASKED)
        values, means = [], []
        for dim in (0, 1):
            has_positive = positive.any(dim)
            contrast = tp * torch.logsumexp(pulls, dim) + tn * torch.logsumexp(pushes, dim)
            value = torch.where(has_positive, F.softplus(contrast.masked_fill(~has_positive, 0.0)), 0.0)
            values.append(value)
            means.append(value.sum() / has_positive.sum().clamp(min=1))
        if self.reduction == "none":
            return torch.cat(values)
        return means[0] + means[1] if self.reduction == "mean" else values[0].sum() + values[1].sum()


class ZLPR(Loss[ZLPROptions]):
    """ZLPR (Su et al., 2022): log(1 + Σ e^x over negatives) + log(1 + Σ e^−x over positives), one value per
    image.

    "mean" is over images with a known label; "none" returns one value per image.
    """

    options_model = ZLPROptions
    by_label = False

    def units(self, targets: Tensor) -> int:
        """Divisor of "mean": the number of images with a known label."""
        return int((targets == targets).any(-1).sum())

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        x, positive, known = known_labels(logits, targets)
        zero = x.new_zeros((*x.shape[:-1], 1))
        pushes = torch.cat([zero, x.masked_fill(positive | ~known, MASKED)], -1)
        pulls = torch.cat([zero, (-x).masked_fill(~positive, MASKED)], -1)
        loss = torch.logsumexp(pushes, -1) + torch.logsumexp(pulls, -1)
        if self.reduction == "none":
            return loss
        images = known.any(-1).sum().clamp(min=1)
        return loss.sum() if self.reduction == "sum" else loss.sum() / images
