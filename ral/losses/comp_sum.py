"""Comp-sum losses (Mao, Mohri and Zhong, ICML 2023, arXiv 2304.07288), one sigmoid per finding."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ral.config.losses import CompSumOptions
from ral.losses.base import Loss, known_labels, reduce

# Largest exponent of a loss with τ < 1, in types that are wider than float16.
STEEPEST = 40.0


class CompSum(Loss[CompSumOptions]):
    """(p^(τ−1) − 1) / (1 − τ) with the score p of the actual label; τ = 1 is cross-entropy, τ = 1 + q generalised
    cross-entropy with exponent q, τ = 2 the absolute error 1 − p.

    Below τ = 1 the loss grows exponentially with the logit. Where its slope would leave the range of the logits' type,
    it continues as a straight line.
    """

    options_model = CompSumOptions

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        x, positive, known = known_labels(logits, targets)
        steepest = min(STEEPEST, math.log(torch.finfo(logits.dtype).max) - 1)
        on_positive = _comp_sum(x, self.options.tau_pos, steepest)
        on_negative = _comp_sum(-x, self.options.tau_neg, steepest)
        return reduce(torch.where(positive, on_positive, on_negative), known, self.reduction)


def _comp_sum(x: Tensor, tau: float, steepest: float) -> Tensor:
    """The loss of a label with score σ(x)."""
    log_p = F.logsigmoid(x)
    if tau == 1:
        return -log_p
    exponent = (tau - 1) * log_p
    if tau > 1:
        return torch.expm1(exponent) / (1 - tau)
    excess = torch.where(exponent > steepest, exponent - steepest, 0.0)
    bounded = torch.where(exponent > steepest, steepest, exponent)
    return (torch.expm1(bounded) + math.exp(steepest) * excess) / (1 - tau)
