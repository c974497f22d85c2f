"""Draws docs/losses.svg: loss and slope against probability for RAL (both forms), ASL, BCE, Hill and GCE.

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


def main() -> None:
    """Draw the four panels."""
    matplotlib.rcParams.update({"svg.hashsalt": "losses", "svg.fonttype": "none"})
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


if __name__ == "__main__":
    main()
