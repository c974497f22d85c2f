"""Binary cross-entropy, the baseline every other loss is compared with."""

import torch.nn.functional as F
from torch import Tensor, nn

from ral.losses.reduce import Reduction, known_labels, reduce


class BCE(nn.Module):
    """Binary cross-entropy over logits, unknown labels left out.

    Args:
        reduction: "mean" over known labels, "sum", or "none".
    """

    def __init__(self, reduction: Reduction = "mean") -> None:
        super().__init__()
        self.reduction: Reduction = reduction

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Loss of logits [batch, findings] given targets of the same shape (1, 0, NaN = unknown), in float32 or wider."""
        x, y, known = known_labels(logits, targets)
        return reduce(F.binary_cross_entropy_with_logits(x, y, reduction="none"), known, self.reduction)
