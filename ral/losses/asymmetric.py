"""Losses that are special cases of one formula (`ral.losses.terms`): BCE, focal, class-balanced, ASL, APL."""

from typing import Any

import torch
from torch import Tensor

from ral.config import losses as config
from ral.losses.base import ClassCounts, Loss, Options, Reduction, effective_weights
from ral.losses.formula import Formula
from ral.losses.fused import asymmetric_loss


class Asymmetric(Loss[Options]):
    """Base class; subclasses map their options to the formula and define the weights of the findings.

    Args:
        class_weight: [findings] or [2, findings] (negatives, positives); overrides the loss's own weights.
    """

    class_weight: Tensor | None

    def __init__(
        self,
        counts: ClassCounts | None = None,
        reduction: Reduction = "mean",
        class_weight: Tensor | None = None,
        **options: Any,
    ) -> None:
        super().__init__(counts, reduction, **options)
        weight = self.weights(counts) if class_weight is None else class_weight
        self.register_buffer("class_weight", weight, persistent=False)
        self.compiled_formula = self.formula()

    def formula(self) -> Formula:
        """The formula for the options."""
        raise TypeError(f"{type(self).__name__} defines no formula")

    def weights(self, counts: ClassCounts | None) -> Tensor | None:
        """Weights of the findings, or None for 1."""
        return None

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss, computed in float32 or wider; the gradient has the logits' dtype."""
        return asymmetric_loss(logits, targets, self.compiled_formula, self.reduction, self.class_weight)


class BCE(Asymmetric[config.BCEOptions]):
    """Binary cross-entropy."""

    options_model = config.BCEOptions

    def formula(self) -> Formula:
        return Formula()

    def weights(self, counts: ClassCounts | None) -> Tensor | None:
        if self.options.pos_weight == "none":
            return None
        if counts is None:
            raise ValueError("BCE with pos_weight balanced needs the training images per finding (counts).")
        return counts.balanced_weights()


class Focal(Asymmetric[config.FocalOptions]):
    """Focal loss (Lin et al., ICCV 2017), one sigmoid per finding."""

    options_model = config.FocalOptions
    sides: Tensor | None
    """Weights of negatives and positives [2, 1]; a buffer, so that no step copies them to the GPU."""

    def __init__(
        self,
        counts: ClassCounts | None = None,
        reduction: Reduction = "mean",
        class_weight: Tensor | None = None,
        **options: Any,
    ) -> None:
        super().__init__(counts, reduction, class_weight, **options)
        alpha = self.options.alpha
        sides = None if alpha is None else torch.tensor([[1 - alpha], [alpha]], dtype=torch.float64)
        self.register_buffer("sides", sides, persistent=False)

    def formula(self) -> Formula:
        return Formula(gamma_pos=self.options.gamma, gamma_neg=self.options.gamma)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        weight = self.class_weight
        if self.sides is not None:
            weight = self.sides.expand(2, logits.shape[-1]) * (1.0 if weight is None else weight)
        return asymmetric_loss(logits, targets, self.compiled_formula, self.reduction, weight)


class CB(Asymmetric[config.CBOptions]):
    """Class-balanced cross-entropy or focal loss (Cui et al., CVPR 2019)."""

    options_model = config.CBOptions
    needs_counts = True

    def formula(self) -> Formula:
        return Formula(gamma_pos=self.options.gamma, gamma_neg=self.options.gamma)

    def weights(self, counts: ClassCounts | None) -> Tensor | None:
        return None if counts is None else effective_weights(counts.positives, self.options.beta)


class ASL(Asymmetric[config.ASLOptions]):
    """Asymmetric loss (Ridnik et al., ICCV 2021)."""

    options_model = config.ASLOptions

    def formula(self) -> Formula:
        values = self.options.model_dump()
        return Formula(detach=values.pop("detach_focus"), **values)


class CWASL(Asymmetric[config.CWASLOptions]):
    """Class-weighted ASL, as in CheXFusion (Kim, 2023), winner of CXR-LT 2023."""

    options_model = config.CWASLOptions
    needs_counts = True

    def formula(self) -> Formula:
        return Formula(**self.options.model_dump())

    def weights(self, counts: ClassCounts | None) -> Tensor | None:
        return (
            None if counts is None else torch.stack([counts.prevalence.exp(), (1 - counts.prevalence).exp()])
        )


class APL(Asymmetric[config.APLOptions]):
    """Asymmetric polynomial loss (Huang et al., ICASSP 2023)."""

    options_model = config.APLOptions

    def formula(self) -> Formula:
        values = self.options.model_dump()
        return Formula(detach=values.pop("detach_focus"), **values)
