"""Losses of a finding over all images of a batch: Dice and AnyLoss, smooth forms of metrics of decisions."""

from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ral.config.losses import AnyLossOptions, DiceOptions, SetLossOptions
from ral.losses.base import ClassCounts, Loss, Reduction, known_labels, reduce

SetOptions = TypeVar("SetOptions", bound=SetLossOptions)


class SetLoss(Loss[SetOptions]):
    """A loss of each finding, computed from sums over its positives and over its negatives in the batch.

    A batch without a positive of a rare finding has no value for it. The sums over positives are then the mean
    of those of earlier batches (`remember`), so that the negatives still have a gradient; the same holds for
    negatives. A finding that no batch has had does not count.

    "mean" is over the findings that count, "sum" their sum; "none" returns the values of all findings, 0 for
    those that do not count.

    Args:
        counts: their number of findings is that of the running sums; without counts there are none.
        rows: number of sums of a side.
    """

    by_label = separable = False
    running: Tensor | None
    """Decayed sums of earlier batches, float32 [2, rows, findings]: of positives, of negatives."""
    batches: Tensor | None
    """Decayed number of earlier batches."""

    def __init__(
        self, counts: ClassCounts | None = None, reduction: Reduction = "mean", rows: int = 2, **options: Any
    ) -> None:
        super().__init__(counts, reduction, **options)
        kept = counts is not None and self.options.memory > 0
        findings = 0 if counts is None else len(counts.positives)
        self.register_buffer("running", torch.zeros(2, rows, findings) if kept else None)
        self.register_buffer("batches", torch.zeros(()) if kept else None)

    def sums(self, x: Tensor, positive: Tensor, known: Tensor) -> Tensor:
        """Sums over positives and over negatives [2, rows, findings]; the first row is the number of labels."""
        raise TypeError(f"{type(self).__name__} defines no sums")

    def remember(self, logits: Tensor, targets: Tensor) -> None:
        """Add the sums of a global batch to the running sums; one that is not finite is left out."""
        if self.running is None or self.batches is None:
            return
        sums = self.sums(*known_labels(logits, targets)).to(self.running.dtype)
        finite = torch.isfinite(sums).all()
        self.running.copy_(torch.where(finite, self.options.memory * self.running + sums, self.running))
        self.batches.copy_(torch.where(finite, self.options.memory * self.batches + 1, self.batches))

    def completed(self, sums: Tensor) -> Tensor:
        """The sums of a batch, with the running mean for the sides that it lacks."""
        if self.running is None or self.batches is None:
            return sums
        mean = (self.running / self.batches.clamp(min=1)).to(sums.dtype)
        return torch.where(sums[:, :1] == 0, mean, sums)

    def over_findings(self, values: Tensor, counts: Tensor) -> Tensor:
        """Reduce values [findings], of which those count where `counts` is True."""
        return reduce(values, counts, self.reduction)


def by_side(value: Tensor, positive: Tensor, known: Tensor) -> Tensor:
    """Sums of `value` [images, findings] over positives and over negatives: [2, findings]."""
    sides = (positive, known & ~positive)
    return torch.stack([torch.where(side, value, 0.0).sum(0) for side in sides])


class Dice(SetLoss[DiceOptions]):
    """1 − (2 Σ q y + smooth) / (Σ q + Σ y + smooth) with q = (1 − p)^alpha p, over a batch or of each label.

    With `square` the sums of the denominator are those of squares. `form: label` is a sum over labels, and has the
    reductions of such losses.
    """

    options_model = DiceOptions

    def __init__(
        self, counts: ClassCounts | None = None, reduction: Reduction = "mean", **options: Any
    ) -> None:
        super().__init__(counts, reduction, rows=3, **options)
        self.by_label = self.separable = self.options.form == "label"

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        x, positive, known = known_labels(logits, targets)
        smooth = self.options.smooth
        if self.options.form == "label":
            q, size = self._scores(x)
            overlap = torch.where(positive, q, 0.0)
            return reduce(1 - (2 * overlap + smooth) / (size + positive + smooth), known, self.reduction)
        sums = self.completed(self.sums(x, positive, known))
        number, overlap = sums[0, 0], sums[0, 1]
        values = 1 - (2 * overlap + smooth) / (sums[:, 2].sum(0) + number + smooth)
        return self.over_findings(values, number > 0)

    def sums(self, x: Tensor, positive: Tensor, known: Tensor) -> Tensor:
        q, size = self._scores(x)
        return torch.stack([by_side(value, positive, known) for value in (torch.ones_like(q), q, size)], 1)

    def _scores(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """q of each logit, and its part of the denominator."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.options.detach_focus):
            weight = torch.exp(self.options.alpha * F.logsigmoid(-x))
        q = weight * torch.sigmoid(x)
        return q, q.square() if self.options.square else q


class AnyLoss(SetLoss[AnyLossOptions]):
    """1 − metric, computed with smooth decisions A = σ(amplify (p − ½)) in place of hard ones, and cross-entropy.

    A finding without a positive so far has only its cross-entropy; so has one without a negative, for gmean and bacc.
    """

    options_model = AnyLossOptions

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        x, positive, known = known_labels(logits, targets)
        sums = self.completed(self.sums(x, positive, known))
        has_both = (sums[0, 0] > 0) & ((sums[1, 0] > 0) | (self.options.metric == "f"))
        number = known.sum(0)
        entropy = torch.where(known, F.softplus(torch.where(positive, -x, x)), 0.0).sum(0)
        entropy = self.over_findings(entropy / number.clamp(min=1), number > 0)
        shortfall = self.over_findings(1 - self._metric(sums), has_both)
        return (1 - self.options.mix) * entropy + self.options.mix * shortfall

    def _metric(self, sums: Tensor) -> Tensor:
        """The metric of each finding; any finite number for one without positives or negatives."""
        smallest = torch.finfo(
            sums.dtype
        ).tiny  # instead of 0, by which nothing is divided; its root has no slope
        positives, negatives = sums[:, 0].clamp(min=smallest)
        hits, rejections = sums[:, 1]
        if self.options.metric == "f":
            square, false_alarms = self.options.beta**2, sums[1, 0] - rejections
            metric: Tensor = (1 + square) * hits / (square * positives + hits + false_alarms)
            return metric
        rates = hits / positives, rejections / negatives
        if self.options.metric == "gmean":
            metric = rates[0].clamp(min=smallest).sqrt() * rates[1].clamp(min=smallest).sqrt()
        else:
            metric = (rates[0] + rates[1]) / 2
        return metric

    def sums(self, x: Tensor, positive: Tensor, known: Tensor) -> Tensor:
        above = self.options.amplify * (torch.sigmoid(x) - 0.5)
        right = torch.sigmoid(torch.where(positive, above, -above))
        return torch.stack([by_side(value, positive, known) for value in (torch.ones_like(x), right)], 1)
