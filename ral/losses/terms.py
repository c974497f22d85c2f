"""The formulas of the asymmetric losses: gain and slope per logit, shared by torch and the Triton kernel.

The functions call their operations (`exp`, `sigmoid`, …) by bare name. Here these are torch's;
`ral.losses.kernel` compiles the same functions with Triton's. The code must therefore be valid for both:
plain expressions, and conditions on the options only.

With p = σ(x), m = 1 − p, q = min(m + clip, 1) and u = 1 − q, a positive and a negative cost

    L⁺ = −m^γ⁺ [log p + ε₁ m + ½ ε₂ m²]
    L⁻ = −u^γ⁻ [log q + ε₀ q] h,    h = 1 ("none"),  λ−p ("paper")  or  (λ−p) p² (λ−q) ("code")

Special cases are BCE (γ = 0), focal (equal γ, no clip), ASL, APL (ε₁, ε₂) and RAL (with h).
"""

import torch
from torch import Tensor, exp, log, sigmoid, where
from torch.nn.functional import logsigmoid

# Form of h. Integers, because Triton compares them at compile time.
NO_HILL, PAPER, CODE = 0, 1, 2


def complement(x: Tensor) -> Tensor:
    """σ(−x) = 1 / (1 + e^x), correct even if e^x overflows."""
    return exp(x).add_(1.0).reciprocal_()


def relu(x: Tensor) -> Tensor:
    """max(x, 0)."""
    return torch.clamp_min(x, 0.0)


def plus(x: Tensor, factor: float, y: Tensor) -> Tensor:
    """x + factor · y in one operation."""
    return torch.add(x, y, alpha=factor)


def less(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """x − y · z in one operation."""
    return torch.addcmul(x, y, z, value=-1.0)


def power(base: Tensor, exponent: float) -> Tensor:
    """base ** exponent for base ≥ 0; products for the common exponents."""
    if exponent == 0.0:
        return base * 0.0 + 1.0
    elif exponent == 1.0:
        return base
    elif exponent == 2.0:
        return base * base
    elif exponent == 3.0:
        return base * base * base
    else:
        return where(base > 0.0, exp(exponent * log(where(base > 0.0, base, 1.0))), 0.0)


def positive(x: Tensor, gamma: float, e1: float, e2: float, detach: bool) -> tuple[Tensor, Tensor]:
    """Gain (the negated loss) of a positive and slope of its loss; `detach` treats m^γ⁺ as a constant."""
    p = sigmoid(x)
    m = complement(x)
    s = logsigmoid(x) + m * (e1 + (0.5 * e2) * m)
    slope = m * (p * (e1 + e2 * m) - 1.0)
    if gamma != 0.0:
        weight = power(m, gamma)
        if not detach:
            slope = slope + gamma * p * s
        return weight * s, weight * slope
    else:
        return s, slope


def negative(
    x: Tensor, gamma: float, clip: float, e0: float, lamb: float, hill: int, detach: bool
) -> tuple[Tensor, Tensor]:
    """Gain (the negated loss) of a negative and slope of its loss; `detach` treats u^γ⁻ as a constant.

    With s the bracket [log q + ε₀ q] and dh/dx = p m k, the slope is
    p u^(γ−1) [u h (m/q + ε₀ m) − m s (u k + γ h)].
    """
    m = complement(x)
    if clip == 0.0:
        p = sigmoid(x)
        u = p
        q = m
        s = logsigmoid(-x)
    else:
        p = 1.0 - m
        u = relu(p - clip)
        q = 1.0 - u
        s = log(q)
    if e0 != 0.0:
        s = s + e0 * q
    moving = p
    if (
        gamma <= 1.0 and clip != 0.0
    ):  # below the margin q is constant; for a larger γ the weight is zero there
        moving = where(u > 0.0, p, 0.0)
    if hill == 2:
        above = lamb - q
        pb = p * (lamb - p)
        pa = p * above
        h = pa * pb
        k = less(pb * plus(moving, 2.0, above), p, pa)
    elif hill == 1:
        h = lamb - p
        k = p * 0.0 - 1.0
    else:
        h = p * 0.0 + 1.0
        k = p * 0.0
    if gamma == 0.0:
        ratio = x * 0.0 + 1.0  # m / q, also if both are 0
        if clip != 0.0:
            ratio = m / q
        if e0 != 0.0:
            ratio = ratio + e0 * m
        if clip != 0.0:
            ratio = where(u > 0.0, ratio, 0.0)
        return s * h, p * less(h * ratio, m * s, k)
    else:
        uh = u * h
        lower = power(u, gamma - 1.0)
        gain = lower * uh * s
        pull = u * k
        if not detach:
            pull = plus(pull, gamma, h)
        if e0 != 0.0 and gamma <= 1.0 and clip != 0.0:
            s = where(u > 0.0, s, 0.0)
        inner = less(uh, m * s, pull) if clip == 0.0 else m * less(uh / q, s, pull)
        if e0 != 0.0:
            inner = plus(inner, e0, m * uh)
        return gain, lower * p * inner
