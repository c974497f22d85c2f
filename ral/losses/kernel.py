"""Triton kernels of the asymmetric losses: one pass over logits and targets for slopes and partial sums, and a
second, tiny one that adds these up.

The formulas are those of `ral.losses.terms`, compiled with Triton's operations.
"""

import types
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ral.losses import terms
from ral.losses.base import Reduction
from ral.losses.formula import Formula

# Logits that a program handles at once, and the maximum number of programs; each handles every PROGRAMS-th block. Of
# 512 to 2,048 logits and 1,024 to 16,384 programs, these were the fastest on an H200.
BLOCK, PROGRAMS = 512, 2048


# Triton's operations, under the names used in `terms`.
@triton.jit
def _exp(x):
    return tl.exp(x)


@triton.jit
def _log(x):
    return tl.log(x)


@triton.jit
def _logsigmoid(x):
    e = tl.exp(-tl.abs(x))
    y = 1.0 + e
    # log(1 + e) in Kahan's form: the quotient corrects the rounding error of 1 + e.
    log1p = tl.where(y == 1.0, e, tl.log(y) * (e / tl.where(y == 1.0, 1.0, y - 1.0)))
    return tl.minimum(x, 0.0) - log1p


@triton.jit
def _sigmoid(x):
    return tl.sigmoid(x)


@triton.jit
def _complement(x):
    return tl.sigmoid(-x)


@triton.jit
def _where(condition, x, y):
    return tl.where(condition, x, y)


@triton.jit
def _relu(x):
    return tl.maximum(x, 0.0)


@triton.jit
def _plus(x, factor, y):
    return x + factor * y


@triton.jit
def _less(x, y, z):
    return x - y * z


def _compiled(function: Any, namespace: dict[str, Any]) -> Any:
    """A function of `terms`, compiled for Triton with other global names."""
    return triton.jit(types.FunctionType(function.__code__, namespace, function.__name__))


_names: dict[str, Any] = {
    "__name__": terms.__name__, "tl": tl, "exp": _exp, "log": _log, "logsigmoid": _logsigmoid,
    "sigmoid": _sigmoid, "complement": _complement, "where": _where, "relu": _relu,
    "plus": _plus, "less": _less,
    **dict.fromkeys(("Tensor", "bool"), tl.tensor),  # names in annotations, which Triton resolves but does not use
}  # fmt: skip
for _name in ("power", "positive", "negative"):
    _names[_name] = _compiled(getattr(terms, _name), _names)
_positive, _negative = _names["positive"], _names["negative"]


@triton.jit
def _loss_kernel(
    x_ptr, y_ptr, weight_ptr, value_ptr, slope_ptr, sum_ptr, known_ptr, count, width,
    gamma_pos: tl.constexpr, gamma_neg: tl.constexpr, clip: tl.constexpr, epsilon_pos: tl.constexpr,
    epsilon_pos_pow: tl.constexpr, epsilon_neg: tl.constexpr, lamb: tl.constexpr, hill: tl.constexpr,
    detach: tl.constexpr, weighted: tl.constexpr, elementwise: tl.constexpr, wide: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    total = tl.zeros((block,), tl.float64 if wide else tl.float32)
    number = tl.zeros((block,), tl.int32)
    stride = tl.num_programs(0).to(tl.int64) * block
    for start in range(program.to(tl.int64) * block, count, stride):
        offsets = start + tl.arange(0, block)
        mask = offsets < count
        x = tl.load(x_ptr + offsets, mask=mask, other=0.0)
        x = x.to(tl.float64) if wide else x.to(tl.float32)
        y = tl.load(y_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        known = mask & (y == y)
        v_pos, s_pos = _positive(x, gamma_pos, epsilon_pos, epsilon_pos_pow, detach)
        v_neg, s_neg = _negative(x, gamma_neg, clip, epsilon_neg, lamb, hill, detach)
        value = -tl.where(known, tl.where(y > 0.5, v_pos, v_neg), 0.0)
        slope = tl.where(known, tl.where(y > 0.5, s_pos, s_neg), 0.0)
        if weighted:
            weight = tl.load(weight_ptr + offsets % width + tl.where(y > 0.5, width, 0), mask=mask, other=0.0)
            value = value * weight
            slope = slope * weight
        tl.store(slope_ptr + offsets, slope.to(slope_ptr.dtype.element_ty), mask=mask)
        if elementwise:
            tl.store(value_ptr + offsets, value, mask=mask)
        total += value
        number += known.to(tl.int32)
    tl.store(sum_ptr + program, tl.sum(total, 0))
    tl.store(known_ptr + program, tl.sum(number, 0))


@triton.jit
def _sum_kernel(sum_ptr, known_ptr, value_ptr, scale_ptr, programs, mean: tl.constexpr, block: tl.constexpr):
    offsets = tl.arange(0, block)
    mask = offsets < programs
    total = tl.sum(tl.load(sum_ptr + offsets, mask=mask, other=0.0), 0)
    if mean:
        known = tl.sum(tl.load(known_ptr + offsets, mask=mask, other=0).to(tl.int64), 0)
        scale = 1.0 / tl.maximum(known, 1).to(total.dtype)
        tl.store(scale_ptr, scale)
        total = total * scale
    tl.store(value_ptr, total)


def run_kernel(
    logits: Tensor,
    targets: Tensor,
    formula: Formula,
    weight: Tensor | None,
    compute: torch.dtype,
    reduction: Reduction,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The loss, its slopes in the logits' dtype, and with "mean" the factor of both; tensors on one GPU."""
    x, y = logits.contiguous(), targets.contiguous()
    if y.dtype == torch.bool:
        y = y.to(torch.uint8)
    slope = torch.empty_like(x)
    elementwise, mean = reduction == "none", reduction == "mean"
    value = torch.empty_like(x, dtype=compute) if elementwise else x.new_empty((), dtype=compute)
    scale = x.new_empty((), dtype=compute) if mean else None
    if not x.numel():  # the sum of nothing, divided by max(1, 0)
        return value.zero_(), slope, scale if scale is None else scale.fill_(1.0)
    programs = min(triton.cdiv(x.numel(), BLOCK), PROGRAMS)
    sums = torch.empty(programs, dtype=compute, device=x.device)
    known = torch.empty(programs, dtype=torch.int32, device=x.device)
    with torch.cuda.device_of(x):  # Triton launches on the current device
        _loss_kernel[(programs,)](
            x, y, x if weight is None else weight.contiguous(), value, slope, sums, known,
            x.numel(), max(1, x.shape[-1]), *formula,
            weighted=weight is not None, elementwise=elementwise, wide=compute == torch.float64, block=BLOCK,
        )  # fmt: skip
        if not elementwise:
            block = triton.next_power_of_2(programs)
            _sum_kernel[(1,)](
                sums, known, value, sums if scale is None else scale, programs, mean=mean, block=block
            )
    return value, slope, scale
