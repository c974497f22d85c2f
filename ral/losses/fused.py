"""The asymmetric losses as one fused autograd function: the forward pass computes both loss and slopes.

On CUDA a Triton kernel reads logits and targets once and writes the slopes; on CPUs, or where Triton cannot
compile, torch runs the same formulas. Only the slopes, one tensor of the logits' shape and dtype, are saved for
the backward pass, which multiplies them by a scalar, in place unless the graph is retained.
"""

import functools
import logging
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ral.losses.base import Reduction
from ral.losses.formula import Formula

logger = logging.getLogger(__name__)

# Logits per block on the CPU: small enough for a core's cache, large enough to amortise the overhead per
# operation.
BLOCK = 1 << 18


def asymmetric_loss(
    logits: Tensor,
    targets: Tensor,
    formula: Formula,
    reduction: Reduction,
    class_weight: Tensor | None = None,
) -> Tensor:
    """The loss of `formula` over logits and binary targets of the same shape.

    Args:
        logits: [batch, findings], any float dtype and strides; computed in float32 or wider.
        targets: same shape; 1, 0, NaN where unknown.
        formula: options of the loss.
        reduction: "mean" over known labels, "sum", or "none" (unknown labels are 0).
        class_weight: multiplies each finding's loss: [findings], or [2, findings] weights of negatives first,
            then of positives. The mean still divides by the number of known labels.

    Returns:
        float32, or float64 for float64 logits: a scalar, or with "none" a tensor of the logits' shape.

    Raises:
        ValueError: the shapes differ.
    """
    if logits.shape != targets.shape:
        raise ValueError(f"logits {tuple(logits.shape)} and targets {tuple(targets.shape)} differ in shape")
    if class_weight is not None:
        if class_weight.shape[-1:] != logits.shape[-1:] or class_weight.shape[:-1] not in ((), (2,)):
            raise ValueError(
                f"class_weight has shape {tuple(class_weight.shape)}, not ([2,] {logits.shape[-1]})"
            )
        class_weight = class_weight.expand(2, -1)
    loss: Tensor = _Asymmetric.apply(logits, targets, formula, reduction, class_weight)  # type: ignore[no-untyped-call]
    return loss


class _Asymmetric(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        targets: Tensor,
        formula: Formula,
        reduction: Reduction,
        weight: Tensor | None,
    ) -> Tensor:
        compute = torch.promote_types(logits.dtype, torch.float32)
        if weight is not None:
            weight = weight.to(logits.device, compute)
        if torch.compiler.is_compiling():
            run = _dense
        elif not logits.is_cuda:
            run = _blocked
        elif kernel_usable():
            from ral.losses.kernel import run_kernel as run
        else:
            run = _dense  # _blocked would copy the targets to the host
        value, slope, ctx.scale = run(logits, targets, formula, weight, compute, reduction)
        ctx.save_for_backward(slope)
        return value

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError("This loss does not support double backward: do not use create_graph=True.")
        (slope,) = ctx.saved_tensors
        factor = gradient if ctx.scale is None else gradient * ctx.scale
        retained = torch.compiler.is_compiling() or torch._C._autograd._get_current_graph_task_keep_graph()
        scaled = (slope * factor).to(slope.dtype) if retained else slope.mul_(factor)
        return scaled, None, None, None, None


@functools.cache
def kernel_usable() -> bool:
    """Whether Triton can compile and run the kernel on the current GPU; tried once per process.

    CUDA builds of torch include Triton, but its first launch needs a C compiler and Python's headers.
    """
    try:
        from ral.losses.kernel import run_kernel

        x = torch.zeros(1, 1, device="cuda")
        run_kernel(x, x, Formula(), None, torch.float32, "mean")
    except Exception as error:  # noqa: BLE001 - any failure of a compiler; the losses work without it
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        logger.warning(
            "Triton cannot compile the kernel of the losses (%s). They run as separate operations of torch, which "
            "is slower. To mend it, install gcc and the headers of Python (python3-dev).",
            reason,
        )
        return False
    return True


def _dense(
    logits: Tensor,
    targets: Tensor,
    formula: Formula,
    weight: Tensor | None,
    compute: torch.dtype,
    reduction: Reduction,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The loss, its slopes in the logits' dtype, and with "mean" the factor of both. The form for torch.compile."""
    x = logits.to(compute)
    known = targets == targets
    (g_pos, s_pos), (g_neg, s_neg) = formula.positive(x), formula.negative(x)
    value = -torch.where(known, torch.where(targets > 0.5, g_pos, g_neg), 0.0)
    slope = torch.where(known, torch.where(targets > 0.5, s_pos, s_neg), 0.0)
    if weight is not None:
        factor = torch.where(targets > 0.5, weight[1], weight[0])
        value, slope = value * factor, slope * factor
    return _reduced(value, slope.to(logits.dtype), known.sum(), reduction)


def _blocked(
    logits: Tensor,
    targets: Tensor,
    formula: Formula,
    weight: Tensor | None,
    compute: torch.dtype,
    reduction: Reduction,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Like `_dense`, in blocks of rows, and evaluating the positive formula at the few positives only."""
    width = max(1, logits.shape[-1])
    x_rows, y_rows = logits.reshape(-1, width), targets.reshape(-1, width)
    # A sum is the cheapest check for NaN.
    masked = targets.is_floating_point() and bool(torch.isnan(targets.sum()))
    unknown = 0
    rows = max(1, BLOCK // width)
    single = 0 < len(x_rows) <= rows
    slopes = logits.new_empty((0, width) if single else x_rows.shape)
    gains = torch.empty(x_rows.shape, dtype=compute, device=logits.device) if reduction == "none" else None
    total = torch.zeros((), dtype=compute, device=logits.device)
    for start in range(0, len(x_rows), rows):
        x, y = (
            x_rows[start : start + rows].to(compute).contiguous(),
            y_rows[start : start + rows].contiguous(),
        )
        gain, slope = formula.negative(x)
        # numpy finds the few positives twice as fast as torch.
        positives = torch.from_numpy(np.flatnonzero(y.float().cpu().numpy() > 0.5)).to(y.device)
        gain.view(-1)[positives], slope.view(-1)[positives] = formula.positive(x.view(-1)[positives])
        if masked:
            missing = torch.isnan(y)
            gain.masked_fill_(missing, 0.0)
            slope.masked_fill_(missing, 0.0)
            unknown += int(missing.sum())
        if weight is not None:
            factor = torch.where(y > 0.5, weight[1], weight[0])
            gain, slope = gain.mul_(factor), slope.mul_(factor)
        if single:  # avoid a copy
            slopes = slope.to(logits.dtype)
        else:
            slopes[start : start + rows] = slope
        if gains is None:
            total += gain.sum()
        else:
            gains[start : start + rows] = gain
    known = torch.full((), logits.numel() - unknown, device=logits.device)
    value = -(total if gains is None else gains.view(logits.shape))
    return _reduced(value, slopes.reshape(logits.shape), known, reduction)


def _reduced(
    value: Tensor, slope: Tensor, known: Tensor, reduction: Reduction
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Apply the reduction to a loss per logit, or to the sum of one ("mean" divides by the number of known labels)."""
    if reduction == "none":
        return value, slope, None
    value = value.sum()
    if reduction == "sum":
        return value, slope, None
    scale = 1 / known.clamp(min=1).to(value.dtype)
    return value * scale, slope, scale
