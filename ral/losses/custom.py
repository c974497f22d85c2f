"""The user's own loss: a class in a file of the project, built and checked once on a small batch."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ral.errors import UserError
from ral.losses.base import ClassCounts, Loss, Reduction
from ral.user_code import failure, load_class

KEY = "loss.custom.class_path"

# Images of the small batch.
IMAGES = 6


def build_custom(
    class_path: str | None, options: Mapping[str, Any], counts: ClassCounts | None, reduction: Reduction
) -> Loss[Any]:
    """The loss of the class `package.module:Class`.

    Args:
        class_path: the class.
        options: its options by name.
        counts: training images per finding.
        reduction: "mean", "sum" or "none".

    Raises:
        UserError: the class cannot be imported or built, or its values are not those of a loss (`check_loss`).
    """
    if class_path is None:
        raise UserError(f"{KEY} is null: write `package.module:Class` of your loss.")
    kind = load_class(KEY, class_path, Loss)
    try:
        loss = kind(counts, reduction, **options)
        check_loss(kind(counts, reduction, **options), 3 if counts is None else len(counts.positives))
    except UserError as error:
        raise UserError(f"{KEY}: {class_path}: {error}") from None
    except (TypeError, ValueError) as error:
        raise UserError(f"{KEY} and loss.custom.options: {failure(error)}") from error
    return loss


def check_loss(loss: Loss[Any], findings: int) -> None:
    """Check shapes, gradients, unknown labels, and the attributes by_label and separable, on a small batch.

    Args:
        loss: changed by the check if it has a state; check another instance than the one in use.
        findings: number of findings.

    Raises:
        UserError: the loss does not behave as the training needs it.
    """
    logits = torch.linspace(-2, 2, IMAGES * findings).reshape(IMAGES, findings)
    targets = torch.arange(IMAGES * findings).reshape(IMAGES, findings) % 3.0
    targets[targets == 2] = torch.nan
    with torch.random.fork_rng(devices=[]):
        _value(loss, "mean", logits, targets, ())
        if loss.by_label:
            _value(loss, "none", logits, targets, (IMAGES, findings))
        if loss.separable:
            total = _value(loss, "sum", logits, targets, ())
            parts = torch.stack(
                [_value(loss, "sum", logits[i : i + 1], targets[i : i + 1], ()) for i in range(IMAGES)]
            )
            if not torch.allclose(total, parts.sum(), rtol=1e-3, atol=1e-5):
                raise UserError(
                    f"with reduction `sum`, the loss of a batch ({total:.6g}) is not the sum of the losses of its "
                    f"images ({parts.sum():.6g}). If images of a batch act on each other, set separable = False in the "
                    "class."
                )
        _check_gradient(loss, logits, targets)


def _value(
    loss: Loss[Any], reduction: Reduction, logits: Tensor, targets: Tensor, shape: tuple[int, ...]
) -> Tensor:
    """The finite loss of a batch, of the shape expected."""
    loss.reduction = reduction
    try:
        value = loss(logits, targets)
    except Exception as error:
        raise UserError(f"forward fails with reduction `{reduction}`: {failure(error)}") from error
    if not isinstance(value, Tensor) or tuple(value.shape) != shape:
        got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        attribute = " (or set by_label = False in the class)" if reduction == "none" else ""
        raise UserError(
            f"with reduction `{reduction}` forward returns {got} instead of shape {shape}{attribute}. End with "
            "`return reduce(loss, known, self.reduction)` of ral.losses.base."
        )
    if not torch.isfinite(value).all():
        raise UserError(
            "the loss is not finite for logits between -2 and 2. Targets are 1, 0, or NaN if unknown: use known_labels "
            "and reduce of ral.losses.base."
        )
    return value.detach()


def _check_gradient(loss: Loss[Any], logits: Tensor, targets: Tensor) -> None:
    """The gradient exists, is finite, and unknown labels have none."""
    loss.reduction = "sum" if loss.separable else "mean"
    leaf = logits.clone().requires_grad_()
    value = loss(leaf, targets)
    if not value.requires_grad:
        raise UserError(
            "the loss has no gradient: it does not depend on the logits, or is detached from them."
        )
    (gradient,) = torch.autograd.grad(value, leaf)
    if not torch.isfinite(gradient).all():
        raise UserError("the gradient is not finite for logits between -2 and 2.")
    if gradient[torch.isnan(targets)].any():
        raise UserError(
            "unknown labels (NaN) have a gradient. They must not count: use known_labels and reduce of ral.losses.base."
        )
