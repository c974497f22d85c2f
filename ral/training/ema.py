"""Exponential moving average (EMA) of the weights; often better than the last weights on rare findings."""

import torch
from torch import Tensor


class ModelEma:
    """EMA of tensors that are trained in place. Under ZeRO 3 these are the local shards of the weights.

    Early in training the decay is min(decay, (1 + t) / (10 + t)), so that the random initial weights fade
    quickly.

    Args:
        tensors: by name. Floating point tensors are averaged, others (counters) are copied.
        decay: share of the average that is kept at each step.
    """

    def __init__(self, tensors: dict[str, Tensor], decay: float) -> None:
        self.decay, self.steps = decay, 0
        self.values = {name: tensor.detach().clone() for name, tensor in tensors.items()}

    @torch.no_grad()
    def update(self, tensors: dict[str, Tensor]) -> None:
        """Move towards `tensors`, which have the same names and shapes as the initial ones."""
        self.steps += 1
        weight = 1 - min(self.decay, (1 + self.steps) / (10 + self.steps))
        pairs = [(self.values[name], tensor.detach()) for name, tensor in tensors.items()]
        floats = [(average, new) for average, new in pairs if average.is_floating_point()]
        torch._foreach_lerp_([average for average, _ in floats], [new for _, new in floats], weight)
        for average, new in pairs:
            if not average.is_floating_point():
                average.copy_(new)
