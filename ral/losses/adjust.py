"""Logit adjustment: the loss of logits that are shifted by the rarity of each finding, around any loss."""

from typing import Any, Literal

import torch
from torch import Tensor

from ral.config.base import Section
from ral.losses.base import ClassCounts, Loss

# Smallest prior of adaptive adjustment, so that its logarithm is finite.
SMALLEST_PRIOR = 1e-4


class Adjusted(Loss[Section]):
    """Another loss of logits plus a shift per finding, in training only: scores are those of the logits themselves.

    static: τ log(π / (1 − π)) with the prevalence π in training (Menon et al., ICLR 2021). The network learns by how
    much an image raises the odds of a finding.

    adaptive: τ log π̂ (PromptMRG, Jin et al., AAAI 2024). π̂ is the number of positives at first and, after each epoch,
    the mean score of positives (`learn`), divided by that of the highest finding. What is still scored low gets a
    larger gradient.

    Args:
        base: the loss.
        counts: training images per finding.
        adjust: which shift.
        tau: its factor.
    """

    prior: Tensor
    """adaptive: π̂, float32 [findings]; part of a checkpoint."""
    fixed: Tensor
    """static: the shift, float32 [findings]."""

    def __init__(
        self, base: Loss[Any], counts: ClassCounts, adjust: Literal["static", "adaptive"], tau: float = 1.0
    ) -> None:
        super().__init__(counts, base.reduction)
        self.base, self.tau, self.adaptive = base, tau, adjust == "adaptive"
        self.by_label, self.separable = base.by_label, base.separable
        positives, negatives = counts.positives.clamp(min=1), counts.negatives.clamp(min=1)
        if self.adaptive:
            self.register_buffer("prior", (positives / positives.max()).clamp(min=SMALLEST_PRIOR).float())
        else:
            self.register_buffer("fixed", torch.log(positives / negatives).float(), persistent=False)

    def shifted(self, logits: Tensor) -> Tensor:
        """The logits plus the shift, in float32 or wider."""
        shift = torch.log(self.prior) if self.adaptive else self.fixed
        return logits.to(torch.promote_types(logits.dtype, torch.float32)) + self.tau * shift

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        self.base.reduction = self.reduction
        value: Tensor = self.base(self.shifted(logits), targets)
        return value

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        self.base.set_epoch(epoch)

    def remember(self, logits: Tensor, targets: Tensor) -> None:
        self.base.remember(self.shifted(logits), targets)

    def units(self, targets: Tensor) -> int:
        return self.base.units(targets)

    def learn(self, logits: Tensor, targets: Tensor) -> None:
        """Set the prior of adaptive adjustment from logits [images, findings] of training images.

        A finding without a positive among them keeps its prior, relative to the others. Logits that are not finite
        change nothing.
        """
        positive = targets > 0.5
        number = positive.sum(0)
        scores = torch.where(positive, torch.sigmoid(logits), 0.0).sum(0) / number.clamp(min=1)
        prior = torch.where(number > 0, scores.to(self.prior.dtype), self.prior).clamp(min=SMALLEST_PRIOR)
        if torch.isfinite(prior).all():
            self.prior.copy_(prior / prior.max())
