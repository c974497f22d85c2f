"""The exponential moving average of the weights, often better than the last step's on rare findings."""

import torch
from torch import Tensor


class ModelEma:
    """Follows tensors that are trained in place; ZeRO 3's are this process's part of the weights.

    In the first steps the decay is (1 + t) / (10 + t) where that is smaller, so that the random start is forgotten.

    Args:
        tensors: by name; floating point ones are averaged, others (counters) copied.
        decay: share of the average kept at a step.
    """

    def __init__(self, tensors: dict[str, Tensor], decay: float) -> None:
        self.decay, self.steps = decay, 0
        self.values = {name: tensor.detach().clone() for name, tensor in tensors.items()}

    @torch.no_grad()
    def update(self, tensors: dict[str, Tensor]) -> None:
        """Move towards `tensors`, which have the names and shapes of the first ones."""
        self.steps += 1
        weight = 1 - min(self.decay, (1 + self.steps) / (10 + self.steps))
        pairs = [(self.values[name], tensor.detach()) for name, tensor in tensors.items()]
        floats = [(own, new) for own, new in pairs if own.is_floating_point()]
        torch._foreach_lerp_([own for own, _ in floats], [new for _, new in floats], weight)
        for own, new in pairs:
            if not own.is_floating_point():
                own.copy_(new)
