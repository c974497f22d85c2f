"""Batch statistics over all processes: torch's own on GPUs, and the same for the CPU, where torch has none."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def synchronise_batch_norm(model: nn.Module, device: torch.device) -> None:
    """Make every batch norm within the model take its statistics over the micro-batches of all processes.

    Names and shapes of the weights stay as they are.
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
            # The class is changed, not the object's forward, so that copying and scripting see a usual module.
            module.__class__ = type(f"Synchronised{kind.__name__}", (_Synchronised, kind), {})


class _Sum(torch.autograd.Function):
    """Sum of a tensor over all processes; every process's part moves the losses of all."""

    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        total = part.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        torch.distributed.all_reduce(total)
        return total


class _Synchronised(_BatchNorm):
    """Normalises by mean and variance over all processes in training; otherwise as the class it is mixed into."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x [batch, channels, ...] and apply what timm's classes do after it (dropout, activation)."""
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
