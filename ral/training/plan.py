"""What is trained when: pure functions of (images, batch size, epoch, step), whoever shares the work out."""

import math

import numpy as np


def batch_offsets(images: int, batch_size: int) -> np.ndarray:
    """Where the global batches of an epoch begin and end: int64 [steps + 1].

    Every image of the epoch is in one batch. The images are spread evenly, so that no last batch is much smaller than the
    others, and none has more than `batch_size` images.
    """
    steps = max(1, math.ceil(images / batch_size))
    return np.arange(steps + 1) * images // steps


def split_into_micro_batches(batch: np.ndarray, rank: int, world: int, accumulation: int) -> list[np.ndarray]:
    """The micro-batches of one rank: the global batch in world × accumulation parts in order, sizes as even as can be.

    Args:
        batch: anything with one entry per image of the global batch.
        rank: this process.
        world: number of processes.
        accumulation: micro-batches of a process per optimizer step.
    """
    parts = world * accumulation
    ends = np.arange(parts + 1) * len(batch) // parts
    mine = range(rank * accumulation, (rank + 1) * accumulation)
    return [batch[ends[part] : ends[part + 1]] for part in mine]


def learning_rate(step: int, steps: int, peak: float, warmup: float) -> float:
    """Learning rate of a step counted from 0: a linear rise over `warmup` × steps, then a cosine to zero."""
    rise = max(1, round(steps * warmup))
    if step < rise:
        return peak * (step + 1) / rise
    return peak * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))
