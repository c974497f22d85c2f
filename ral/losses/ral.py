"""Robust Asymmetric Loss (Park et al., ICCV CVAMD 2023, arXiv 2308.05542), finite for every logit."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ral.config.train import RALOptions
from ral.losses.reduce import Reduction, known_labels, reduce


class RAL(nn.Module):
    """Robust Asymmetric Loss over logits.

    With p = σ(x) and q = min(1 − p + clip, 1), the loss of a positive and of a negative is

        L⁺ = −(1−p)^γ⁺ [log p + ε₁(1−p) + ½ ε₂(1−p)²]
        L⁻ = −(1−q)^γ⁻ [log q + ε₀ q] (λ−p) p² (λ−q)        form "code", as in the authors' repository
        L⁻ = −(1−q)^γ⁻ [log q + ε₀ q] (λ−p)                 form "paper", our reading of equation 6

    The gradient flows through every factor. The authors clamp p at 1e-8, which ends the pull on a positive
    below x ≈ −18 and divides by zero in half precision; log-sigmoid needs no clamp.

    Args:
        options: form, exponents, margin and coefficients.
        reduction: "mean" over known labels (the authors take the sum), "sum", or "none".
    """

    def __init__(self, options: RALOptions | None = None, reduction: Reduction = "mean") -> None:
        super().__init__()
        self.options = options or RALOptions()
        self.reduction: Reduction = reduction

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Loss of logits [batch, findings] given targets of the same shape (1, 0, NaN = unknown), in float32 or wider."""
        x, y, known = known_labels(logits, targets)
        return reduce(torch.where(y > 0.5, self._positive(x), self._negative(x)), known, self.reduction)

    def _positive(self, x: Tensor) -> Tensor:
        o = self.options
        miss = torch.sigmoid(-x)
        series = F.logsigmoid(x) + o.epsilon_pos * miss + 0.5 * o.epsilon_pos_pow * miss**2
        return -series if o.gamma_pos == 0 else -(miss**o.gamma_pos) * series

    def _negative(self, x: Tensor) -> Tensor:
        o = self.options
        p = torch.sigmoid(x)
        if o.clip:
            q = (torch.sigmoid(-x) + o.clip).clamp(max=1.0)
            log_q = torch.log(q)
        else:
            q = torch.sigmoid(-x)
            log_q = F.logsigmoid(-x)
        series = log_q + o.epsilon_neg * q
        hill = (o.lamb - p) if o.form == "paper" else (o.lamb - p) * p**2 * (o.lamb - q)
        return -((1 - q) ** o.gamma_neg) * series * hill
