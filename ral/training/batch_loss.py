"""The loss of a micro-batch as a part of the global batch's: splitting a batch changes only rounding."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ral.config.train import TrainParams
from ral.data.dataset import Dataset
from ral.errors import UserError
from ral.inference.prefetch import MicroBatch
from ral.losses import ClassCounts, Loss, build_loss
from ral.losses.adjust import Adjusted
from ral.losses.base import effective_weights

# Training images per finding that adaptive logit adjustment scores after each epoch.
SCORED_POSITIVES = 100


class GlobalLoss(NamedTuple):
    """The loss of a global batch and its gradient, for losses in which images act on each other."""

    value: Tensor
    """Scalar."""
    slopes: Tensor
    """Gradient by the logits, float32 [images, findings]."""


class BatchLoss:
    """The loss of the section loss, with deferred re-weighting, smoothed labels and mixup, over global batches.

    A loss that is separable is a sum over labels divided by the number of known labels in the global batch, which
    every rank computes from the plan. For the others all ranks gather the logits of the global batch (`over_batch`)
    and compute the same loss and the same gradient by all logits; each then uses the rows of its own images.

    Args:
        params: sections loss and train.
        dataset: the prepared data.
        device: of the training.

    Raises:
        UserError: train.reweight or train.label_smoothing needs a loss with one term per label.
    """

    learns_from: np.ndarray | None = None
    """Rows of training images whose logits `learn` needs after each epoch; None if the loss learns nothing."""

    def __init__(self, params: TrainParams, dataset: Dataset, device: torch.device) -> None:
        labels = torch.from_numpy(dataset.labels[dataset.rows("train")])
        counts = ClassCounts.of(dataset.class_counts["train"], dataset.findings, labels)
        options = getattr(params.loss, params.loss.name).model_dump()
        loss = build_loss(params.loss.name, options, counts)
        self.dataset, self.device = dataset, device
        self.reweight, self.smoothing = params.train.reweight, params.train.label_smoothing
        for key, used in (("reweight", self.reweight is not None), ("label_smoothing", self.smoothing > 0)):
            if used and not (loss.by_label and loss.separable):
                raise UserError(
                    f"train.{key} needs a loss with one term per label; {params.loss.name} has none. Set it to "
                    f"{'null' if key == 'reweight' else 0}."
                )
        if params.loss.adjust != "none":
            loss = Adjusted(loss, counts, params.loss.adjust, params.loss.adjust_tau)
            if loss.adaptive:
                self.learns_from = positive_rows(dataset, params.train.seed)
        if loss.separable:
            loss.reduction = "none" if self.reweight is not None or self.smoothing else "sum"
        self.loss: Loss[Any] = loss.to(device)
        self.weights: Tensor | None = None
        """Weight of each finding from epoch `reweight.from_epoch` on, float32 [findings]; None without reweight."""
        if self.reweight is not None:
            self.weights = effective_weights(counts.positives, self.reweight.beta).float().to(device)
        self.prevalence = counts.prevalence.nan_to_num(0.0).float().to(device)
        """Prevalence of each finding in training, 0 without known labels; float32 [findings]."""
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

        Under mixup, the losses for the labels of an image and of its partner have the shares of the two images: for
        cross-entropy the same as mixed labels.

        Args:
            logits: of the micro-batch.
            batch: the micro-batch.
            whole: the global batch's loss, if it is not separable and a rank has more than one micro-batch.
        """
        if not self.loss.separable:
            value, slopes = self.over_batch([logits], [batch]) if whole is None else whole
            product = (logits * slopes[batch.first : batch.first + len(logits)]).sum()
            gradient_only = product - product.detach()
            return value * (len(logits) / batch.total) + gradient_only
        if batch.mixup is None:
            return self._sum(logits, batch.targets) / batch.labels
        own, partners = batch.targets.chunk(2)
        first, second = self._sum(logits, own), self._sum(logits, partners)
        return (batch.mixup * first + (1 - batch.mixup) * second) / batch.labels

    def _sum(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The sum of a separable loss over labels, a scalar."""
        loss: Tensor = self.loss(logits, targets)
        if loss.ndim:
            if self.smoothing:
                loss = self._smoothed(loss, logits, targets)
            if (
                self.weights is not None
                and self.reweight is not None
                and self.epoch >= self.reweight.from_epoch
            ):
                loss = loss * self.weights
            loss = loss.sum()
        return loss

    def _smoothed(self, value: Tensor, logits: Tensor, targets: Tensor) -> Tensor:
        """The mean of each label's loss and that of its opposite, weighted by the smoothed label.

        For cross-entropy this is the loss of the smoothed label. Other losses have a value for 0 and 1 only.
        """
        opposite: Tensor = self.loss(logits, 1 - targets)
        doubt = self.smoothing * torch.where(targets > 0.5, 1 - self.prevalence, self.prevalence)
        return value + doubt * (opposite - value)

    def learn(self, logits: np.ndarray) -> None:
        """Let adaptive logit adjustment learn from the logits of `learns_from`, float32 [rows, findings]."""
        if isinstance(self.loss, Adjusted) and self.learns_from is not None:
            targets = torch.from_numpy(self.dataset.targets(self.learns_from)).to(self.device)
            self.loss.learn(torch.from_numpy(logits).to(self.device), targets)

    def over_batch(self, logits: Sequence[Tensor], batches: Sequence[MicroBatch]) -> GlobalLoss:
        """The loss of a global batch, from this rank's logits of it. All ranks must call it, once per step.

        Args:
            logits: of each micro-batch of this rank in the step; their graph is not used.
            batches: the micro-batches.
        """
        images, findings = batches[0].total, logits[0].shape[-1]
        mixup = batches[0].mixup
        # Of the labels of the images, and of those of their partners.
        shares = [1.0] if mixup is None else [mixup, 1 - mixup]
        gathered = torch.zeros(1 + len(shares), images, findings, device=logits[0].device)
        for own, batch in zip(logits, batches, strict=True):
            rows = slice(batch.first, batch.first + len(own))
            gathered[0, rows] = own.detach()
            gathered[1:, rows] = batch.targets.view(len(shares), len(own), findings)
        if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            torch.distributed.all_reduce(gathered)  # each row is 0 on all ranks but one
        leaf, labels = gathered[0].requires_grad_(), gathered[1:]
        with torch.enable_grad():
            values = [share * self.loss(leaf, targets) for share, targets in zip(shares, labels, strict=True)]
            value = torch.stack(values).sum()
        (slopes,) = torch.autograd.grad(value, leaf)
        self.loss.remember(leaf.detach(), labels[shares.index(max(shares))])
        return GlobalLoss(value.detach(), slopes)

    def state_dict(self) -> dict[str, Tensor]:
        """The state of the loss, on the CPU; empty if it has none."""
        return {name: tensor.to("cpu", copy=True) for name, tensor in self.loss.state_dict().items()}

    def load_state_dict(self, values: dict[str, Tensor]) -> None:
        """Restore `state_dict`; nothing to restore leaves the initial state."""
        if values:
            self.loss.load_state_dict(values)


def positive_rows(dataset: Dataset, seed: int) -> np.ndarray:
    """Rows of up to `SCORED_POSITIVES` positive training images of each finding, drawn by the seed; ascending."""
    rows = dataset.rows("train")
    positive = dataset.labels[rows] == 1
    rng = np.random.default_rng(seed)
    chosen = [rng.permutation(rows[column])[:SCORED_POSITIVES] for column in positive.T]
    return np.unique(np.concatenate(chosen))
