"""Reference values of the losses that methods.json has: loss and gradient in float64."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

CONTENT = json.loads((Path(__file__).parent / "losses" / "methods.json").read_text())
LOGITS, TARGETS = (torch.tensor(CONTENT[name], dtype=torch.float64) for name in ("Z", "Y"))


def rows(loss: str) -> list[dict[str, Any]]:
    """The tables of a loss: its parameters, and logit, target, loss, slope of each row."""
    return [entry for entry in CONTENT["table"] if entry["loss"] == loss]


def batch(name: str) -> dict[str, Any]:
    """Loss and gradient over LOGITS and TARGETS of the entry whose name starts with `name`."""
    (entry,) = [value for key, value in CONTENT["batch"].items() if key.startswith(name)]
    found: dict[str, Any] = entry
    return found


def gradient(loss: torch.nn.Module, logits: Tensor, targets: Tensor) -> tuple[float, Tensor]:
    """A scalar loss and its gradient."""
    leaf = logits.clone().requires_grad_()
    value = loss(leaf, targets)
    (slope,) = torch.autograd.grad(value, leaf)
    return value.item(), slope
