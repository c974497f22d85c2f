"""AdamW that skips non-finite steps without waiting for the GPU."""

from collections.abc import Callable, Sequence
from typing import overload

import torch
from torch import Tensor

from ral.models.groups import ParameterGroup

# AdamW's state per weight, besides the step count.
MOMENTS = ("exp_avg", "exp_avg_sq")


class AdamW(torch.optim.AdamW):
    """AdamW that skips steps with non-finite gradients, and clips gradients where DeepSpeed does not.

    Args:
        groups: parameter groups, see `ral.models.groups.parameter_groups`.
        learning_rate: of groups without a rate of their own.
        clip_norm: maximum gradient norm; None where DeepSpeed clips (under ZeRO, where gradients are
            sharded).
    """

    def __init__(
        self, groups: Sequence[ParameterGroup], learning_rate: float, clip_norm: float | None
    ) -> None:
        super().__init__([{**group} for group in groups], lr=learning_rate, fused=True)
        self.clip_norm = clip_norm
        self.found_inf: Tensor | None = None
        """After a step: 1 if it was skipped, on the device; None where DeepSpeed decides that."""

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step, or skip it."""
        if self.clip_norm is not None:
            weights = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
            norm = torch.nn.utils.get_total_norm([p.grad for p in weights])
            # The fused step reads this on the device, without a host synchronisation.
            self.found_inf = (~torch.isfinite(norm)).float()
            torch.nn.utils.clip_grads_with_norm_(weights, self.clip_norm, norm)
        result: float | None = super().step(closure)
        return result
