"""Draws docs/losses.svg: loss and slope against probability for RAL (both forms), ASL, BCE, Hill and GCE, and
docs/losses_set.svg: slopes of the losses over a batch.

python docs/losses_figure.py
"""

import argparse

if __name__ == "__main__":  # before the imports that take seconds: --help needs none of them
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()

from pathlib import Path

import matplotlib
import torch
from matplotlib.figure import Figure

from ral.losses import build_loss

CURVES = [
    ("RAL, code", "ral", {}),
    ("RAL, paper", "ral", {"form": "paper"}),
    ("ASL", "asl", {"detach_focus": False}),
    ("BCE", "bce", {}),
    ("Hill", "hill", {}),
    ("GCE, q = 0.7", "comp_sum", {"tau_pos": 1.7, "tau_neg": 1.7}),
]

# Over a batch of 64 images with 4 positives.
SET_CURVES = [
    ("Dice", "dice", {}, "-"),
    ("Dice, alpha 1, as published", "dice", {"alpha": 1.0, "detach_focus": False}, "--"),
    ("AnyLoss, F", "anyloss", {"mix": 1.0}, "-"),
    ("AnyLoss, G-mean", "anyloss", {"mix": 1.0, "metric": "gmean"}, "-"),
    ("AnyLoss, F, with BCE", "anyloss", {}, "-"),
]
POSITIVES, NEGATIVES = (0.6, 4), (0.3, 60)
"""Score and number of the images."""


def main() -> None:
    """Draw both figures."""
    matplotlib.rcParams.update({"svg.hashsalt": "losses", "svg.fonttype": "none"})
    draw_losses()
    draw_set_losses()


def draw_losses() -> None:
    """Loss and slope, of a positive and of a negative."""
    figure = Figure(figsize=(9, 6), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True)
    p = torch.linspace(0.002, 0.998, 400, dtype=torch.float64)
    for column, (target, name) in enumerate([(1.0, "positive"), (0.0, "negative")]):
        for label, loss, options in CURVES:
            x = torch.logit(p).requires_grad_()
            value = build_loss(loss, options, reduction="none")(x[:, None], torch.full((400, 1), target))
            (slope,) = torch.autograd.grad(value.sum(), x)
            panels[0, column].plot(p, value.detach()[:, 0], label=label)
            panels[1, column].plot(p, slope, label=label)
        panels[0, column].set(title=f"A {name} image", ylim=(0, 4))
        panels[1, column].set(xlabel="p = σ(logit)", ylim=(-1.2, 0.1) if target else (-0.1, 1.2))
    panels[0, 0].set_ylabel("loss")
    panels[1, 0].set_ylabel("slope by the logit")
    panels[0, 1].legend()
    figure.savefig(Path(__file__).parent / "losses.svg", metadata={"Date": None})


def draw_set_losses() -> None:
    """Slope by the logit of one image, as its score moves in a batch."""
    figure = Figure(figsize=(10, 3), layout="constrained")
    panels = figure.subplots(1, 2)
    scores = torch.linspace(0.002, 0.998, 200, dtype=torch.float64)
    targets = torch.tensor([1.0] * POSITIVES[1] + [0.0] * NEGATIVES[1])[:, None]
    others = torch.tensor([POSITIVES[0]] * POSITIVES[1] + [NEGATIVES[0]] * NEGATIVES[1], dtype=torch.float64)
    for panel, image, name in zip(panels, (0, POSITIVES[1]), ("positive", "negative"), strict=True):
        for label, loss, options, style in SET_CURVES:
            slopes = []
            for score in scores:
                x = torch.logit(others)
                x[image] = torch.logit(score)
                x = x[:, None].requires_grad_()
                (slope,) = torch.autograd.grad(build_loss(loss, options)(x, targets), x)
                slopes.append(slope[image, 0])
            panel.plot(scores, torch.stack(slopes), style, label=label)
        panel.axhline(0, color="0.5", linewidth=0.8)
        panel.set(title=f"A {name} image", xlabel="p = σ(logit)")
    panels[0].set_ylabel("slope by the logit")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", fontsize="small")
    figure.savefig(Path(__file__).parent / "losses_set.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
