"""Base of all losses: constructor, precision, masking of unknown labels, reduction."""

from collections.abc import Mapping
from typing import Any, ClassVar, Generic, Literal, NamedTuple, Protocol, TypeVar

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from ral.config.base import Section

Reduction = Literal["mean", "sum", "none"]
Options = TypeVar("Options", bound=Section)


class Labels(Protocol):
    """Labels of a split by finding; `ral.data.dataset_info.LabelCounts` has them."""

    @property
    def positives(self) -> Mapping[str, int]:
        """Positive images by finding."""

    @property
    def negatives(self) -> Mapping[str, int]:
        """Negative images by finding."""


class ClassCounts(NamedTuple):
    """Positive and negative training images of each finding, float tensors [findings], in the order of the outputs."""

    positives: Tensor
    negatives: Tensor
    together: Tensor | None = None
    """Images with both of two findings, float [findings, findings]; None: not counted, for a loss that needs none or
    takes findings as independent."""

    @classmethod
    def of(cls, counts: "Labels", findings: tuple[str, ...], targets: Tensor | None = None) -> "ClassCounts":
        """From the train part of class_counts.json, and the labels [images, findings] of the training images."""
        rows = ([kind[name] for name in findings] for kind in (counts.positives, counts.negatives))
        positives, negatives = (torch.tensor(row, dtype=torch.float64) for row in rows)
        if targets is None:
            return cls(positives, negatives, None)
        together = torch.zeros(len(findings), len(findings), dtype=torch.float64)
        for block in targets.split(2**20):  # all at once they would take a gigabyte for 20 million images
            marks = (block == 1).float()
            together += marks.T @ marks
        return cls(positives, negatives, together)

    @property
    def prevalence(self) -> Tensor:
        """Share of positives among images with a known label."""
        return self.positives / (self.positives + self.negatives)

    def balanced_weights(self) -> Tensor:
        """Weights [2, findings] of negatives, 1, and of positives, negatives / positives."""
        return torch.stack([torch.ones_like(self.positives), self.negatives / self.positives.clamp(min=1)])

    def jaccard(self) -> Tensor:
        """Jaccard index of each two findings [findings, findings]: images with both, of those with any; diagonal 1."""
        together = self.together
        if together is None:
            share = self.positives / (self.positives + self.negatives).clamp(min=1).sqrt()
            together = share[:, None] * share
        together = together.clone().fill_diagonal_(0)
        index = together / (self.positives[:, None] + self.positives - together).clamp(min=1)
        return index.fill_diagonal_(1)


class Loss(nn.Module, Generic[Options]):
    """A loss over logits [batch, findings] and targets of the same shape (1, 0, NaN = unknown).

    Args:
        counts: training images per finding, for losses that need them.
        reduction: "mean" (over known labels, where the loss has one value per label), "sum", or "none".
        options: fields of `options_model` by name; the defaults are the paper's.

    Raises:
        ValueError: unknown option or invalid value (the message lists the valid ones), or counts are missing.
    """

    options_model: ClassVar[type[Section]] = Section
    needs_counts: ClassVar[bool] = False
    by_label: bool = True
    """Whether the loss is a sum of one term per label, so that reduction "none" has the logits' shape."""
    separable: bool = True
    """Whether the loss is a sum of one term per image; an option may decide it. If not, training computes the loss on
    the whole global batch."""

    def __init__(
        self, counts: ClassCounts | None = None, reduction: Reduction = "mean", **options: Any
    ) -> None:
        super().__init__()
        name = type(self).__name__
        try:
            self.options: Options = self.options_model.model_validate(options)  # type: ignore[assignment]
        except ValidationError as error:
            problems = ", ".join(f"{item['loc'][0]}: {item['msg']}" for item in error.errors())
            valid = ", ".join(self.options_model.model_fields) or "none"
            raise ValueError(f"{name}: {problems}. Options: {valid}.") from None
        if reduction not in ("mean", "sum", "none"):
            raise ValueError(f"{name}: reduction is {reduction!r}. Allowed: mean, sum, none.")
        if self.needs_counts and counts is None:
            raise ValueError(
                f"{name} needs the training images per finding (counts, from class_counts.json)."
            )
        self.reduction: Reduction = reduction
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the current epoch, from 0; some losses change during training."""
        self.epoch = epoch

    def remember(self, logits: Tensor, targets: Tensor) -> None:
        """Update the state of a loss that is not separable, after its value for a global batch; by default it has none.

        The state is in persistent buffers: checkpoints contain them. Buffers that the constructor can compute again
        are registered with `persistent=False`.
        """

    def units(self, targets: Tensor) -> int:
        """Divisor of reduction "mean" for these targets: the number of known labels."""
        return int((targets == targets).sum())


def known_labels(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits in float32 or wider, mask of positive labels, and mask of known labels.

    Raises:
        ValueError: the shapes differ.
    """
    if logits.shape != targets.shape:
        raise ValueError(f"logits {tuple(logits.shape)} and targets {tuple(targets.shape)} differ in shape")
    return logits.to(torch.promote_types(logits.dtype, torch.float32)), targets > 0.5, targets == targets


def reduce(loss: Tensor, known: Tensor, reduction: Reduction) -> Tensor:
    """Mask unknown labels, then reduce: mean over known labels, sum, or none (unknown labels are 0)."""
    loss = torch.where(known, loss, 0.0)
    if reduction == "none":
        return loss
    return loss.sum() if reduction == "sum" else loss.sum() / known.sum().clamp(min=1)


def effective_weights(positives: Tensor, beta: float) -> Tensor:
    """Class-balanced weights (Cui 2019): inverse effective numbers, scaled to a mean of 1 over the findings."""
    inverse = (1 - beta) / (1 - beta ** positives.double().clamp(min=1))
    return inverse / inverse.mean()
