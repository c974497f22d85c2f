"""Batch norm: statistics over all ranks, and running statistics that a skipped step does not change.

torch's own SyncBatchNorm is for GPUs only, and waits for the GPU three times per layer.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

# Elements to whose multiples the views of a flat tensor are aligned, as kernels that read 16 bytes at once need it.
ALIGNMENT = 64


def synchronise_batch_norm(model: nn.Module) -> None:
    """Make every batch norm of the model compute its statistics over the micro-batches of all ranks.

    Modules keep their identity, and weights their names and shapes.
    """
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.track_running_stats:
            kind = type(module)
            # Change the class rather than the object's forward, so that copying and scripting still work.
            module.__class__ = type(f"Synchronised{kind.__name__}", (_Synchronised, kind), {})


class BufferBackup:
    """Keeps the floating point buffers of a model (running statistics) as they were after the last step that was
    not skipped: those of a skipped step may not be finite.

    The buffers become views of one flat tensor per dtype, so that keeping or restoring all of them takes three
    operations.

    Args:
        model: its buffers are replaced, with the same values.
    """

    def __init__(self, model: nn.Module) -> None:
        places: dict[Tensor, list[tuple[nn.Module, str]]] = {}
        for module in model.modules():
            for name, buffer in module._buffers.items():
                if buffer is not None and buffer.is_floating_point():
                    places.setdefault(buffer, []).append((module, name))
        self.flat = [
            _flatten({buffer: owners for buffer, owners in places.items() if buffer.dtype == dtype})
            for dtype in dict.fromkeys(buffer.dtype for buffer in places)
        ]
        self.saved = [flat.clone() for flat in self.flat]

    def save(self) -> None:
        """Keep the current values."""
        for flat, saved in zip(self.flat, self.saved, strict=True):
            saved.copy_(flat)

    def after_step(self, skipped: Tensor) -> None:
        """Restore the kept values if the step was skipped (a scalar above 0, on the device), else keep the new ones."""
        for flat, saved in zip(self.flat, self.saved, strict=True):
            flat.copy_(torch.where(skipped > 0, saved, flat))
            saved.copy_(flat)


@contextmanager
def unchanged_buffers(model: nn.Module) -> Iterator[None]:
    """Give all buffers of a model (running statistics and counters) their values of before the block after it."""
    saved = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        for buffer, value in saved:
            buffer.copy_(value)


def _flatten(places: dict[Tensor, list[tuple[nn.Module, str]]]) -> Tensor:
    """Copy buffers of one dtype into one tensor, and replace them by views of it."""
    offsets, end = [], 0
    for buffer in places:
        offsets.append(end)
        end += -(-buffer.numel() // ALIGNMENT) * ALIGNMENT
    first = next(iter(places))
    flat = torch.zeros(end, dtype=first.dtype, device=first.device)
    for (buffer, owners), offset in zip(places.items(), offsets, strict=True):
        view = flat[offset : offset + buffer.numel()].view(buffer.shape)
        view.copy_(buffer)
        for module, name in owners:
            module._buffers[name] = view
    return flat


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


def _sum(local: Tensor) -> Tensor:
    total: Tensor = _Sum.apply(local)  # type: ignore[no-untyped-call]
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
        count = torch.full(
            (1,), x.numel() / x.shape[1], device=x.device
        )  # torch.tensor would wait for the GPU
        sums = _sum(torch.cat([wide.sum(dims), count]))
        number = sums[-1].detach()
        mean = sums[:-1] / number
        centred = wide - mean.view(shape)
        variance = _sum(centred.square().sum(dims)) / number
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
        normalised: Tensor = y.to(x.dtype)
        return normalised
