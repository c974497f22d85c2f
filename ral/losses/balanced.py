"""Losses that depend on the class frequencies: distribution-balanced, LDAM, COMIC's multi-focal modifier and label
correction.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ral.config.losses import DBOptions, LDAMOptions, MFMOptions, RLCOptions
from ral.losses.base import ClassCounts, Loss, Options, Reduction, effective_weights, known_labels, reduce

# Smallest 1 − attention, whose logarithm is finite.
SMALLEST_SHARE = 1e-6


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

    With `cooccurrence`, a finding's attention in an image is its share of the co-occurrences with the image's
    findings. It lowers the score of a positive; a negative with an attention above 0 has 1 − p multiplied by `related`.
    """

    options_model = MFMOptions
    shares: Tensor | None
    """For each finding, in which share of its co-occurrences it is with each other finding [other, finding]."""

    def __init__(
        self, counts: ClassCounts | None = None, reduction: Reduction = "mean", **options: Any
    ) -> None:
        super().__init__(counts, reduction, **options)
        shares = None
        if self.options.cooccurrence:
            if counts is None or counts.together is None:
                raise ValueError(
                    "MFM with cooccurrence needs the images with two findings (counts.together)."
                )
            others = counts.together.clone().fill_diagonal_(0)
            shares = others / others.sum(0).clamp(min=1)
        self.register_buffer("shares", shares, persistent=False)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        x, positive, known = known_labels(logits, targets)
        o = self.options
        rarity = _rarity(self.positives, o.power).to(x.dtype)
        log_q = _log_clipped(x, o.clip)
        if self.shares is None:
            log_p, miss = F.logsigmoid(x), torch.sigmoid(-x)
            above = (torch.sigmoid(x) - o.clip).clamp(min=0)
        else:
            attention = (positive.double() @ self.shares).to(
                x.dtype
            )  # neither autocast nor TF32 acts on float64
            attention = attention / attention.sum(-1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)
            rest = (1 - attention).clamp(min=SMALLEST_SHARE)
            log_p, miss = F.logsigmoid(x) + torch.log(rest), 1 - torch.sigmoid(x) * rest
            log_q = torch.where(attention > 0, (log_q + math.log(o.related)).clamp(max=0), log_q)
            above = -torch.expm1(log_q)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not o.detach_focus):
            pull, push = miss**o.gamma_pos, above ** (o.gamma_neg + rarity)
        return reduce(rarity * torch.where(positive, -pull * log_p, -push * log_q), known, self.reduction)


class RLC(Counted[RLCOptions]):
    """MFM with a margin, in which negatives scored above `tau` and above their finding's mean in the batch count as
    positives from `change_epoch` on (COMIC, ICCV 2023).

    The corrected labels are added to the finding's number of positives until the end of the epoch. The sum is
    multiplied by the number of images over the number of positives, both of the batch; "none" has a value per label.
    """

    options_model = RLCOptions
    by_label = separable = False
    corrected: Tensor
    """Labels corrected so far in an epoch, float64 [findings], and that epoch."""
    corrected_epoch: Tensor

    def __init__(
        self, counts: ClassCounts | None = None, reduction: Reduction = "mean", **options: Any
    ) -> None:
        super().__init__(counts, reduction, **options)
        self.register_buffer("corrected", torch.zeros_like(self.positives))
        self.register_buffer("corrected_epoch", torch.zeros((), dtype=torch.int64))

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        x, positive, known = known_labels(logits, targets)
        o = self.options
        missed, corrected = self._missed(logits, targets)
        x = torch.where(positive, x - o.margin, x)
        positive = positive | missed
        rarity = _rarity(self.positives + corrected, o.power).to(x.dtype)
        with torch.no_grad():
            push = (torch.sigmoid(x) - o.clip).clamp(min=0) ** (o.gamma_neg + rarity)
        loss = rarity * torch.where(positive, -F.logsigmoid(x), -push * _log_clipped(x, o.clip))
        scale = len(x) / positive.sum().clamp(min=1).to(x.dtype)
        return reduce(loss * scale, known, self.reduction)

    def remember(self, logits: Tensor, targets: Tensor) -> None:
        """Add the labels corrected in a global batch to those of the epoch."""
        self.corrected.copy_(self._missed(logits, targets)[1])
        self.corrected_epoch.fill_(self.epoch)

    def _missed(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Which labels of a batch are missed positives, and the number corrected in the epoch, with these."""
        x, positive, known = known_labels(logits.detach(), targets)
        p = torch.sigmoid(torch.where(positive, x - self.options.margin, x))
        mean = torch.where(known, p, 0.0).sum(0) / known.sum(0).clamp(min=1)
        missed = known & ~positive & (p > self.options.tau) & (p > mean)
        if self.epoch < self.options.change_epoch:
            missed = torch.zeros_like(missed)
        before = torch.where(self.corrected_epoch == self.epoch, self.corrected, 0.0)
        return missed, before + missed.sum(0)


def _rarity(positives: Tensor, power: float) -> Tensor:
    """Weight of each finding, 1 for the most frequent one."""
    return (1 - torch.log(positives / positives.max())).pow(power)


def _log_clipped(x: Tensor, clip: float) -> Tensor:
    """log min(1 − σ(x) + clip, 1)."""
    return torch.log1p(-(torch.sigmoid(x) - clip).clamp(min=0)) if clip else F.logsigmoid(-x)
