"""Triton kernel of the asymmetric losses: computes slopes and partial sums in one pass over logits and
targets.

The formulas are those of `ral.losses.terms`, compiled with Triton's operations.
"""

import types
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ral.losses import terms
from ral.losses.formula import Formula

# Logits per program.
BLOCK = 1024


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
    offsets = program.to(tl.int64) * block + tl.arange(0, block)
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
    tl.store(sum_ptr + program, tl.sum(value, 0))
    tl.store(known_ptr + program, tl.sum(known.to(tl.int32), 0))


def run_kernel(
    logits: Tensor,
    targets: Tensor,
    formula: Formula,
    weight: Tensor | None,
    compute: torch.dtype,
    elementwise: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss (sum, or per logit), slopes in the logits' dtype, known labels of each program, of tensors on one GPU."""
    x, y = logits.contiguous(), targets.contiguous()
    if y.dtype == torch.bool:
        y = y.to(torch.uint8)
    slope = torch.empty_like(x)
    value = torch.empty_like(x, dtype=compute) if elementwise else slope
    programs = triton.cdiv(x.numel(), BLOCK)
    sums = torch.empty(programs, dtype=compute, device=x.device)
    known = torch.empty(programs, dtype=torch.int32, device=x.device)
    if programs:
        with torch.cuda.device_of(x):  # Triton launches on the current device
            _loss_kernel[(programs,)](
                x, y, x if weight is None else weight.contiguous(), value, slope, sums, known,
                x.numel(), max(1, x.shape[-1]), *formula,
                weighted=weight is not None, elementwise=elementwise, wide=compute == torch.float64, block=BLOCK,
            )  # fmt: skip
    return value if elementwise else sums.sum(), slope, known
