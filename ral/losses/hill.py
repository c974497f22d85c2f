"""Losses for labels with missing positives: Hill and SPLC (Zhang et al., 2021, arXiv 2112.07368)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ral.config.losses import HillOptions, SPLCOptions
from ral.losses.base import Loss, known_labels, reduce


def focal_positive(x: Tensor, gamma: float) -> Tensor:
    """Focal loss of a positive with logit x."""
    return torch.sigmoid(-x) ** gamma * F.softplus(-x)


class Hill(Loss[HillOptions]):
    """Focal loss with a margin on positives, (λ − p) p² on negatives: its slope decreases again as p approaches 1."""

    options_model = HillOptions

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        x, positive, known = known_labels(logits, targets)
        p = torch.sigmoid(x)
        on_positive = focal_positive(x - self.options.margin, self.options.gamma)
        return reduce(
            torch.where(positive, on_positive, (self.options.lamb - p) * p**2), known, self.reduction
        )


class SPLC(Loss[SPLCOptions]):
    """Focal loss that, from `change_epoch` on, treats negatives scored above `tau` as missed positives."""

    options_model = SPLCOptions

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        x, positive, known = known_labels(logits, targets)
        o = self.options
        loss = torch.where(positive, focal_positive(x - o.margin, o.gamma), focal_positive(-x, o.gamma))
        if self.epoch >= o.change_epoch:
            missed = known & ~positive & (torch.sigmoid(x) > o.tau)
            loss = torch.where(missed, focal_positive(x, o.gamma), loss)
        return reduce(loss, known, self.reduction)
