"""Robust Asymmetric Loss (Park et al., ICCV CVAMD 2023, arXiv 2308.05542), finite for every logit."""

from ral.config.losses import RALOptions
from ral.losses import terms
from ral.losses.asymmetric import Asymmetric
from ral.losses.formula import Formula


class RAL(Asymmetric[RALOptions]):
    """Robust Asymmetric Loss over logits.

    With p = σ(x) and q = min(1 − p + clip, 1), the loss of a positive and of a negative is

        L⁺ = −(1−p)^γ⁺ [log p + ε₁(1−p) + ½ ε₂(1−p)²]
        L⁻ = −(1−q)^γ⁻ [log q + ε₀ q] (λ−p) p² (λ−q)        form "code", as in the authors' repository
        L⁻ = −(1−q)^γ⁻ [log q + ε₀ q] (λ−p)                 form "paper", our reading of equation 6

    The gradient flows through every factor. The authors clamp p at 1e-8, which zeroes the gradient of
    positives below x ≈ −18 and divides by zero in half precision; log-sigmoid needs no clamp.

    "mean" divides the authors' sum by the number of known labels, so that the step size does not depend on
    the batch size or the number of findings. Over millions of labels, its gradients underflow in float16:
    scale the loss if the logits are float16 leaf tensors (not needed under autocast).

    Options: form, gamma_pos, gamma_neg, clip, epsilon_pos, epsilon_pos_pow, epsilon_neg, lamb (`RALOptions`),
    and reduction and class_weight as for every loss of the family.
    """

    options_model = RALOptions

    def formula(self) -> Formula:
        values = self.options.model_dump()
        form = values.pop("form")
        return Formula(**values, hill=terms.PAPER if form == "paper" else terms.CODE)
