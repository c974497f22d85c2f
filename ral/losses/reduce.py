"""What every loss shares: float32 or wider, unknown labels left out, the reduction."""

from typing import Literal

import torch
from torch import Tensor

Reduction = Literal["mean", "sum", "none"]


def known_labels(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits in float32 or wider, targets with unknown (NaN) as 0, and which labels are known.

    Raises:
        ValueError: the shapes differ.
    """
    if logits.shape != targets.shape:
        raise ValueError(f"logits {tuple(logits.shape)} and targets {tuple(targets.shape)} differ in shape")
    x = logits if logits.dtype == torch.float64 else logits.float()
    known = ~torch.isnan(targets)
    return x, torch.where(known, targets, 0).to(x.dtype), known


def reduce(loss: Tensor, known: Tensor, reduction: Reduction) -> Tensor:
    """Leave out unknown labels, then mean over the known ones, sum, or none (unknown become 0)."""
    loss = torch.where(known, loss, 0)
    if reduction == "none":
        return loss
    total = loss.sum()
    return total if reduction == "sum" else total / known.sum().clamp(min=1)
