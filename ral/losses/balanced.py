"""Losses that depend on the class frequencies: distribution-balanced, LDAM, COMIC's multi-focal modifier."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ral.config.losses import DBOptions, LDAMOptions, MFMOptions
from ral.losses.base import ClassCounts, Loss, Options, Reduction, effective_weights, known_labels, reduce


class Counted(Loss[Options]):
    """A loss that uses the number of training images per finding."""

    needs_counts = True
    positives: Tensor
    negatives: Tensor

    def __init__(
        self, counts: ClassCounts | None = None, reduction: Reduction = "mean", **options: Any
    ) -> None:
        super().__init__(counts, reduction, **options)
        assert counts is not None  # checked by Loss
        self.register_buffer("positives", counts.positives.clamp(min=1), persistent=False)
        self.register_buffer("negatives", counts.negatives.clamp(min=1), persistent=False)


class DB(Counted[DBOptions]):
    """Distribution-balanced loss (Wu et al., ECCV 2020): re-balanced weights and negative-tolerant logits,
    focal form.
    """

    options_model = DBOptions

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        x, positive, known = known_labels(logits, targets)
        o = self.options
        # Sampling rate of the finding under class-aware sampling, relative to that of the image.
        rarity = (1 / self.positives).to(x.dtype)
        drawn = (positive * rarity).sum(-1, keepdim=True)
        weight = torch.sigmoid(o.map_beta * (rarity / drawn - o.map_gamma)) + o.map_alpha
        x = x - torch.log(self.negatives / self.positives).to(x.dtype) * o.neg_bias / o.neg_scale
        x = torch.where(positive, x, -o.neg_scale * x)
        weight = torch.where(positive, weight, weight / o.neg_scale)
        return reduce(
            o.balance * weight * torch.sigmoid(-x) ** o.gamma * F.softplus(-x), known, self.reduction
        )


class LDAM(Counted[LDAMOptions]):
    """Margins that grow with rarity, on the logits of positives; class-balanced weights from `defer_epoch` on."""

    options_model = LDAMOptions

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        x, positive, known = known_labels(logits, targets)
        margins = self.positives**-0.25
        margins = (self.options.max_margin * margins / margins.max()).to(x.dtype)
        x = self.options.scale * torch.where(positive, x - margins, -x)
        loss = F.softplus(-x)
        if self.epoch >= self.options.defer_epoch:
            loss = loss * effective_weights(self.positives, self.options.beta).to(x.dtype)
        return reduce(loss, known, self.reduction)


class MFM(Counted[MFMOptions]):
    """ASL in which a finding's rarity w is added to the negatives' exponent and multiplies its loss (COMIC,
    ICCV 2023).
    """

    options_model = MFMOptions

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        x, positive, known = known_labels(logits, targets)
        o = self.options
        rarity = (1 - torch.log(self.positives / self.positives.max())).pow(o.power).to(x.dtype)
        p = torch.sigmoid(x)
        above = (p - o.clip).clamp(min=0)
        log_q = torch.log1p(-above) if o.clip else F.logsigmoid(-x)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not o.detach_focus):
            pull = torch.sigmoid(-x) ** o.gamma_pos
            push = above ** (o.gamma_neg + rarity)
        loss = torch.where(positive, -pull * F.logsigmoid(x), -push * log_q)
        return reduce(rarity * loss, known, self.reduction)
