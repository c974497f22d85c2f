"""The loss of a micro-batch as a part of the global batch's: splitting a batch changes only rounding."""

from typing import Any

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


class BatchLoss:
    """The loss of the section loss, with deferred re-weighting, smoothed labels and mixup, over global batches.

    A loss that is separable is a sum over labels divided by the number of known labels in the global batch, which
    every rank computes from the plan. Others (the two-way loss) are averaged over micro-batches.

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
        labels = torch.from_numpy(dataset.targets()[dataset.rows("train")])
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

    def contribution(self, logits: Tensor, batch: MicroBatch) -> Tensor:
        """The part of the global batch's loss that is due to this micro-batch, a scalar.

        Under mixup, the losses for the labels of an image and of its partner have the shares of the two images: for
        cross-entropy the same as mixed labels.
        """
        if batch.mixup is None:
            return self._part(logits, batch.targets, batch)
        own, partners = batch.targets.chunk(2)
        first, second = self._part(logits, own, batch), self._part(logits, partners, batch)
        return batch.mixup * first + (1 - batch.mixup) * second

    def _part(self, logits: Tensor, targets: Tensor, batch: MicroBatch) -> Tensor:
        """The contribution of a micro-batch with these targets."""
        value: Tensor = self.loss(logits, targets)
        if not self.loss.separable:
            return value * batch.share
        if value.ndim:
            if self.smoothing:
                value = self._smoothed(value, logits, targets)
            if (
                self.weights is not None
                and self.reweight is not None
                and self.epoch >= self.reweight.from_epoch
            ):
                value = value * self.weights
            value = value.sum()
        return value / batch.labels

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
            targets = torch.from_numpy(self.dataset.targets()[self.learns_from]).to(self.device)
            self.loss.learn(torch.from_numpy(logits).to(self.device), targets)

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
    positive = dataset.targets()[rows] == 1
    rng = np.random.default_rng(seed)
    chosen = [rng.permutation(rows[column])[:SCORED_POSITIVES] for column in positive.T]
    return np.unique(np.concatenate(chosen))
