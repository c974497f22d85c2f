"""Z-loss (de Brébisson and Vincent, 2016, arXiv 1604.08859): a loss of standardised logits."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ral.config.losses import ZLossOptions
from ral.losses.base import ClassCounts, Loss, Reduction, known_labels, reduce

# Smallest variance whose root logits are divided by, so that the gradient of equal logits is finite.
SMALLEST_VARIANCE = 1e-6


class ZLoss(Loss[ZLossOptions]):
    """softplus(a (b ∓ z)) / a, z the logit minus the mean of its group, divided by the group's standard deviation.

    A group is a finding over the images of the batch, or an image over its findings. Shifting and scaling the logits
    of a group changes nothing: what counts is a label's place among the others, whose move moves it, too. Groups
    without a positive or without a negative tell nothing and cost nothing; "mean" divides by all known labels.

    With axis finding, the images of a batch interact.
    """

    options_model = ZLossOptions
    by_label = separable = False

    def __init__(
        self, counts: ClassCounts | None = None, reduction: Reduction = "mean", **options: Any
    ) -> None:
        super().__init__(counts, reduction, **options)
        self.separable = self.options.axis == "image"

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        x, positive, known = known_labels(logits, targets)
        axis = 0 if self.options.axis == "finding" else -1
        number = known.sum(axis, keepdim=True).clamp(min=1)
        deviation = torch.where(known, x, 0.0)
        deviation = deviation - deviation.sum(axis, keepdim=True) / number
        variance = torch.where(known, deviation**2, 0.0).sum(axis, keepdim=True) / number
        z = deviation / variance.clamp(min=SMALLEST_VARIANCE).sqrt()
        a, b = self.options.slope, self.options.shift
        loss = F.softplus(a * (b - torch.where(positive, z, -z))) / a
        informative = positive.any(axis, keepdim=True) & (known & ~positive).any(axis, keepdim=True)
        return reduce(torch.where(informative, loss, 0.0), known, self.reduction)
