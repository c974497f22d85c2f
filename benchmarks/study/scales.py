"""The factor on a loss that its authors sum: with it, the gradient at the start has the norm of that of BCE.

AdamW does not see the scale of a loss, but gradient clipping does. The factors are measured on a CPU, on one batch of
fold 0 with the initial weights, and written to docs/results/scales.csv, which later runs read.
"""

import numpy as np
import torch

from benchmarks.study.plan import Run
from benchmarks.study.recipes import arm, base
from benchmarks.study.training import Place, fold_dataset, parameters
from ral.losses import ClassCounts, build_loss
from ral.models.inputs import channels_last, normalised
from ral.training.phase import build_network

# Images of the batch, and significant digits of a scale.
IMAGES, DIGITS = 256, 4


def measured(run: Run, place: Place) -> float:
    """Norm of the gradient of BCE over that of the loss of a run's arm; the same for all folds, seeds and devices."""
    norms = [gradient_norm(name, run, place) for name in ("bce", base(run.arm))]
    return float(f"{norms[0] / norms[1]:.{DIGITS}g}")


def gradient_norm(name: str, run: Run, place: Place) -> float:
    """Norm of the gradient of an arm's mean loss by all weights, with the initial weights of seed 0, on fold 0."""
    start = Run(
        "rate", name, 0, 0, run.learning_rate, run.backbone, run.epochs, run.batch_size, "float32", "cpu"
    )
    params = parameters(start)
    dataset = fold_dataset(place.data, place.pixels, place.state, start)
    rows = np.random.default_rng(0).permutation(dataset.rows("train"))[:IMAGES]
    network = build_network(params, len(dataset.findings)).train()
    images = normalised(torch.from_numpy(dataset.gather(rows)), dataset.info)
    targets = torch.tensor(dataset.targets())
    counts = ClassCounts.of(dataset.class_counts["train"], dataset.findings, targets[dataset.rows("train")])
    options = getattr(params.loss, params.loss.name).model_dump()
    loss = build_loss(arm(name).loss, options, counts)
    value = loss(network(channels_last(images)), targets[rows])
    gradients = torch.autograd.grad(value, list(network.parameters()))
    return float(torch.nn.utils.get_total_norm(gradients))
