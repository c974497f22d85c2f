"""Phases, batch boundaries, micro-batches and learning rate: pure functions, independent of world size where
possible.
"""

import math
from typing import Literal, NamedTuple

import numpy as np

from ral.config.sampler import SamplerConfig
from ral.config.train import TrainConfig


class Phase(NamedTuple):
    """What is trained, and for how long."""

    name: Literal["network", "classifier"]
    """"classifier": everything else is frozen."""
    epochs: int
    learning_rate: float
    """Peak learning rate."""
    sampler: SamplerConfig

    features: Literal["live", "bank"] = "live"
    """"bank": the classifier is refitted on stored features, without steps."""

    @property
    def classifier_only(self) -> bool:
        """Whether only the classifier is trained."""
        return self.name == "classifier"


def phases(config: TrainConfig) -> list[Phase]:
    """The phases of a training: the network, then its classifier alone if the section train says so."""
    network = Phase("network", config.epochs, config.learning_rate, config.sampler)
    if config.classifier is None:
        return [network]
    second = config.classifier
    rate = second.learning_rate or 0.0
    return [network, Phase("classifier", second.epochs or 1, rate, second.sampler, second.features)]


def batch_offsets(images: int, batch_size: int) -> np.ndarray:
    """Start and end offsets of the global batches of an epoch: int64 [steps + 1].

    Every image of the epoch is in exactly one batch. Images are spread evenly: no batch exceeds `batch_size`,
    and batch sizes differ by at most one image.
    """
    steps = max(1, math.ceil(images / batch_size))
    return np.arange(steps + 1) * images // steps


def split_into_micro_batches(batch: np.ndarray, rank: int, world: int, accumulation: int) -> list[np.ndarray]:
    """The micro-batches of one rank. The global batch is cut, in order, into world × accumulation nearly
    equal parts.

    Args:
        batch: array with one entry per image of the global batch.
        rank: rank of this process.
        world: world size.
        accumulation: gradient accumulation steps (micro-batches per rank and optimizer step).
    """
    parts = world * accumulation
    offsets = np.arange(parts + 1) * len(batch) // parts
    local_parts = range(rank * accumulation, (rank + 1) * accumulation)
    return [batch[offsets[part] : offsets[part + 1]] for part in local_parts]


def learning_rate(step: int, steps: int, peak: float, warmup: float) -> float:
    """Learning rate of a step, counted from 0: linear warmup over `warmup` × steps, then cosine decay to zero."""
    warmup_steps = max(1, round(steps * warmup))
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, steps - warmup_steps)))
