"""The loss of a micro-batch as a part of the global batch's: splitting a batch changes only rounding."""

from typing import Any

import torch
from torch import Tensor

from ral.config.train import TrainParams
from ral.data.dataset import Dataset
from ral.errors import UserError
from ral.inference.prefetch import MicroBatch
from ral.losses import ClassCounts, Loss, build_loss
from ral.losses.base import effective_weights


class BatchLoss:
    """The loss of the section loss, with deferred re-weighting, over global batches.

    A loss that is separable is a sum over labels divided by the number of known labels in the global batch, which
    every rank computes from the plan. Others (the two-way loss) are averaged over micro-batches.

    Args:
        params: sections loss and train.
        dataset: the prepared data.
        device: of the training.

    Raises:
        UserError: train.reweight needs a loss with one term per label.
    """

    def __init__(self, params: TrainParams, dataset: Dataset, device: torch.device) -> None:
        counts = ClassCounts.of(dataset.class_counts["train"], dataset.findings)
        options = getattr(params.loss, params.loss.name).model_dump()
        loss = build_loss(params.loss.name, options, counts)
        self.reweight = params.train.reweight
        if loss.separable:
            loss.reduction = "none" if self.reweight is not None and loss.by_label else "sum"
        self.loss: Loss[Any] = loss.to(device)
        self.weights: Tensor | None = None
        """Weight of each finding from epoch `reweight.from_epoch` on, float32 [findings]; None without reweight."""
        if self.reweight is not None:
            if not loss.by_label:
                raise UserError(
                    f"train.reweight needs a loss with one term per label; {params.loss.name} has none. Set it to null."
                )
            self.weights = effective_weights(counts.positives, self.reweight.beta).float().to(device)
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the current epoch of the phase, from 0."""
        self.epoch = epoch
        self.loss.set_epoch(epoch)

    def divisor(self, targets: Tensor) -> float:
        """What the loss of a global batch with these targets [images, findings] is divided by, at least 1."""
        return max(1, self.loss.units(targets))

    def contribution(self, logits: Tensor, batch: MicroBatch) -> Tensor:
        """The part of the global batch's loss that is due to this micro-batch, a scalar."""
        value: Tensor = self.loss(logits, batch.targets)
        if not self.loss.separable:
            return value * batch.share
        if value.ndim:
            if (
                self.weights is not None
                and self.reweight is not None
                and self.epoch >= self.reweight.from_epoch
            ):
                value = value * self.weights
            value = value.sum()
        return value / batch.labels
