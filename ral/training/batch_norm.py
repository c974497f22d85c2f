"""Synchronised batch norm over all ranks: torch's own on GPUs, and an equivalent for CPUs, where torch has none."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def synchronise_batch_norm(model: nn.Module, device: torch.device) -> None:
    """Make every batch norm of the model compute its statistics over the micro-batches of all ranks.

    Names and shapes of the weights do not change.
    """
    if device.type == "cuda":
        from ral.models import import_timm

        convert = import_timm().layers.convert_sync_batchnorm
        for name, child in model.named_children():
            setattr(model, name, convert(child))
        return
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.track_running_stats:
            kind = type(module)
            # Change the class rather than the object's forward, so that copying and scripting still work.
            module.__class__ = type(f"Synchronised{kind.__name__}", (_Synchronised, kind), {})


class _Sum(torch.autograd.Function):
    """Differentiable sum of a tensor over all ranks: the gradient is summed over all ranks too."""

    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:
        total = local.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        torch.distributed.all_reduce(total)
        return total


class _Synchronised(_BatchNorm):
    """In training, normalises by the mean and variance over all ranks; otherwise behaves like the base class."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x [batch, channels, ...], then apply the dropout and activation of timm's norm classes."""
        if not self.training:
            return super().forward(x)
        y = self._normalise(x)
        for name in ("drop", "act"):
            if isinstance(getattr(self, name, None), nn.Module):
                y = getattr(self, name)(y)
        return y

    def _normalise(self, x: Tensor) -> Tensor:
        dims = [0, *range(2, x.ndim)]
        shape = [1, -1, *([1] * (x.ndim - 2))]
        wide = x.float()
        count = torch.tensor([x.numel() / x.shape[1]], device=x.device)
        sums = _Sum.apply(torch.cat([wide.sum(dims), count]))
        number = sums[-1].detach()
        mean = sums[:-1] / number
        centred = wide - mean.view(shape)
        variance = _Sum.apply(centred.square().sum(dims)) / number
        with torch.no_grad():
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            self.num_batches_tracked += 1
            rate = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, rate)
            self.running_var.lerp_(variance * number / (number - 1).clamp(min=1), rate)
        y = centred * torch.rsqrt(variance + self.eps).view(shape)
        if self.affine:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        return y.to(x.dtype)
