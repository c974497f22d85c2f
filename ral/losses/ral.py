"""Robust Asymmetric Loss (Park et al., ICCV CVAMD 2023, arXiv 2308.05542), finite for every logit."""

from typing import Any

from torch import Tensor, nn

from ral.config.train import RALOptions
from ral.losses import terms
from ral.losses.fused import Formula, asymmetric_loss
from ral.losses.reduce import Reduction


class RAL(nn.Module):
    """Robust Asymmetric Loss over logits.

    With p = σ(x) and q = min(1 − p + clip, 1), the loss of a positive and of a negative is

        L⁺ = −(1−p)^γ⁺ [log p + ε₁(1−p) + ½ ε₂(1−p)²]
        L⁻ = −(1−q)^γ⁻ [log q + ε₀ q] (λ−p) p² (λ−q)        form "code", as in the authors' repository
        L⁻ = −(1−q)^γ⁻ [log q + ε₀ q] (λ−p)                 form "paper", our reading of equation 6

    The gradient flows through every factor. The authors clamp p at 1e-8, which ends the pull on a positive
    below x ≈ −18 and divides by zero in half precision; log-sigmoid needs no clamp.

    "mean" divides the authors' sum by the number of known labels, so that neither the batch size nor the number of
    findings changes the step. A mean over millions of labels makes gradients that float16 cannot hold: scale the
    loss if the logits themselves are float16 leaves (under autocast they are not, and nothing is needed).

    Args:
        reduction: "mean", "sum", or "none".
        class_weight: [findings], multiplies each finding's loss.
        options: fields of `RALOptions` by name: form, gamma_pos, gamma_neg, clip, epsilon_pos, epsilon_pos_pow,
            epsilon_neg, lamb.
    """

    class_weight: Tensor | None

    def __init__(
        self, reduction: Reduction = "mean", class_weight: Tensor | None = None, **options: Any
    ) -> None:
        super().__init__()
        values = RALOptions(**options).model_dump()
        hill = terms.PAPER if values.pop("form") == "paper" else terms.CODE
        self.formula = Formula(**values, hill=hill)
        self.reduction: Reduction = reduction
        self.register_buffer("class_weight", class_weight)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Loss of logits [batch, findings] given targets of the same shape (1, 0, NaN = unknown), in float32 or wider."""
        return asymmetric_loss(logits, targets, self.formula, self.reduction, self.class_weight)
