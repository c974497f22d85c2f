"""Weighted cross-entropy and correlation of labels: our reading of a hybrid loss (2024, arXiv 2410.03979)."""

from typing import Any

import torch
from torch import Tensor

from ral.config.losses import HybridOptions
from ral.losses.asymmetric import Asymmetric
from ral.losses.base import ClassCounts, Reduction, known_labels, reduce
from ral.losses.formula import Formula


class Hybrid(Asymmetric[HybridOptions]):
    """Weighted cross-entropy plus `correlation` times the score of each negative, the less that finding occurs with the
    image's positives, the more: 1 − J, J the mean Jaccard index with them in the training labels.

    An image without a positive has only its cross-entropy, and so have positives.
    """

    options_model = HybridOptions
    needs_counts = True
    apart: Tensor
    """1 − Jaccard index of each two findings, float64 [findings, findings]; 0 on the diagonal."""

    def __init__(
        self,
        counts: ClassCounts | None = None,
        reduction: Reduction = "mean",
        class_weight: Tensor | None = None,
        **options: Any,
    ) -> None:
        super().__init__(counts, reduction, class_weight, **options)
        assert counts is not None  # checked by Loss
        self.register_buffer("apart", 1 - counts.jaccard(), persistent=False)

    def formula(self) -> Formula:
        return Formula()

    def weights(self, counts: ClassCounts | None) -> Tensor | None:
        return None if counts is None or self.options.pos_weight == "none" else counts.balanced_weights()

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        loss = super().forward(logits, targets)
        if not self.options.correlation:
            return loss
        x, positive, known = known_labels(logits, targets)
        marks = positive.to(x.dtype)
        with torch.autocast(x.device.type, enabled=False):  # it would multiply in half precision
            apart = marks @ self.apart.to(x.dtype) / marks.sum(-1, keepdim=True).clamp(min=1)
        strange = torch.where(positive, 0.0, apart * torch.sigmoid(x))
        return loss + self.options.correlation * reduce(strange, known, self.reduction)
