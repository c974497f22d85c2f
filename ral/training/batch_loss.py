"""The loss of a micro-batch as a part of the global batch's: splitting a batch changes only rounding."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ral.config.train import TrainParams
from ral.data.dataset import Dataset
from ral.errors import UserError
from ral.inference.prefetch import MicroBatch
from ral.losses import ClassCounts, Loss, build_loss
from ral.losses.base import effective_weights


class GlobalLoss(NamedTuple):
    """The loss of a global batch and its gradient, for losses in which images act on each other."""

    value: Tensor
    """Scalar."""
    slopes: Tensor
    """Gradient by the logits, float32 [images, findings]."""


class BatchLoss:
    """The loss of the section loss, with deferred re-weighting, over global batches.

    A loss that is separable is a sum over labels divided by the number of known labels in the global batch, which
    every rank computes from the plan. For the others all ranks gather the logits of the global batch (`over_batch`)
    and compute the same loss and the same gradient by all logits; each then uses the rows of its own images.

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
        if options.get("cooccurrence"):
            positive = torch.from_numpy(dataset.targets()[dataset.rows("train")] == 1).double()
            counts = counts._replace(together=positive.T @ positive)
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

    def contribution(self, logits: Tensor, batch: MicroBatch, whole: GlobalLoss | None = None) -> Tensor:
        """The part of the global batch's loss that is due to this micro-batch, a scalar.

        Args:
            logits: of the micro-batch.
            batch: the micro-batch.
            whole: the global batch's loss, if it is not separable and a rank has more than one micro-batch.
        """
        if not self.loss.separable:
            value, slopes = self.over_batch([logits], [batch]) if whole is None else whole
            product = (logits * slopes[batch.first : batch.first + len(logits)]).sum()
            return value * (len(logits) / batch.total) + (
                product - product.detach()
            )  # adds the gradient only
        loss: Tensor = self.loss(logits, batch.targets)
        if loss.ndim:
            if (
                self.weights is not None
                and self.reweight is not None
                and self.epoch >= self.reweight.from_epoch
            ):
                loss = loss * self.weights
            loss = loss.sum()
        return loss / batch.labels

    def over_batch(self, logits: Sequence[Tensor], batches: Sequence[MicroBatch]) -> GlobalLoss:
        """The loss of a global batch, from this rank's logits of it. All ranks must call it, once per step.

        Args:
            logits: of each micro-batch of this rank in the step; their graph is not used.
            batches: the micro-batches.
        """
        images, findings = batches[0].total, logits[0].shape[-1]
        both = torch.zeros(2, images, findings, device=logits[0].device)
        for own, batch in zip(logits, batches, strict=True):
            rows = slice(batch.first, batch.first + len(own))
            both[0, rows], both[1, rows] = own.detach(), batch.targets
        if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            torch.distributed.all_reduce(both)  # each row is 0 on all ranks but one
        leaf, targets = both[0].requires_grad_(), both[1]
        with torch.enable_grad():
            value = self.loss(leaf, targets)
        (slopes,) = torch.autograd.grad(value, leaf)
        self.loss.remember(leaf.detach(), targets)
        return GlobalLoss(value.detach(), slopes)

    def state_dict(self) -> dict[str, Tensor]:
        """The state of the loss, on the CPU; empty if it has none."""
        return {name: tensor.to("cpu", copy=True) for name, tensor in self.loss.state_dict().items()}

    def load_state_dict(self, values: dict[str, Tensor]) -> None:
        """Restore `state_dict`; nothing to restore leaves the initial state."""
        if values:
            self.loss.load_state_dict(values)
