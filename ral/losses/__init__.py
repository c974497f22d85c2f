"""Training losses and the one place that builds them by name."""

from torch import nn

from ral.config.train import LossConfig
from ral.losses.bce import BCE
from ral.losses.ral import RAL
from ral.losses.reduce import Reduction


def build_loss(config: LossConfig, reduction: Reduction = "mean") -> nn.Module:
    """The loss that `config.name` names, with its block of options; called with (logits, targets)."""
    if config.name == "ral":
        return RAL(reduction, **config.ral.model_dump())
    return BCE(reduction)


__all__ = ["BCE", "RAL", "build_loss"]
