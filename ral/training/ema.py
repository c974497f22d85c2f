"""Exponential moving average (EMA) of the weights; often better than the last weights on rare findings."""

import torch
from torch import Tensor


class ModelEma:
    """EMA of tensors that are trained in place. Under ZeRO 3 these are the local shards of the weights.

    Early in training the decay is min(decay, (1 + t) / (10 + t)), so that the random initial weights fade
    quickly.

    Args:
        tensors: by name, the tensors themselves: `update` reads their values. Floating point tensors are averaged,
            others (counters) are copied.
        decay: share of the average that is kept at each step.
    """

    def __init__(self, tensors: dict[str, Tensor], decay: float) -> None:
        self.decay, self.steps = decay, 0
        self.values = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        # Lists made once: walking a network by name takes longer than the update itself.
        floats = [name for name, tensor in tensors.items() if tensor.is_floating_point()]
        others = [name for name in tensors if name not in set(floats)]
        self._sources = [[tensors[name].detach() for name in names] for names in (floats, others)]
        self._averages = [[self.values[name] for name in names] for names in (floats, others)]

    @torch.no_grad()
    def update(self) -> None:
        """Move towards the tensors' current values."""
        self.steps += 1
        weight = 1 - min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(self._averages[0], self._sources[0], weight)
        if self._averages[1]:
            torch._foreach_copy_(self._averages[1], self._sources[1])

    def load(self, values: dict[str, Tensor], steps: int) -> None:
        """Continue from the values and the number of updates of an interrupted training."""
        for name, value in values.items():
            self.values[name].copy_(value)
        self.steps = steps
