"""What is trained when: a pure function of (seed, epoch, step), whoever shares the work out."""

import math

import numpy as np


def epoch_order(rows: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """The training rows in the order of this epoch."""
    return np.random.default_rng([seed, epoch]).permutation(rows)


def steps_per_epoch(rows: int, batch_size: int) -> int:
    """Optimizer steps of an epoch. Films that do not fill a last batch wait for the next epoch's order."""
    return rows // batch_size


def share(batch: np.ndarray, rank: int, world: int, micro_batch: int) -> list[np.ndarray]:
    """The micro-batches of one rank: its contiguous part of the global batch, cut up.

    Args:
        batch: anything with one entry per film of the global batch.
        rank: this process.
        world: number of processes; divides the batch.
        micro_batch: films per backward pass; divides the part.
    """
    part = len(batch) // world
    mine = batch[rank * part : (rank + 1) * part]
    return [mine[start : start + micro_batch] for start in range(0, part, micro_batch)]


def learning_rate(step: int, steps: int, peak: float, warmup: float) -> float:
    """Learning rate of a step counted from 0: a linear rise over `warmup` × steps, then a cosine to zero."""
    rise = max(1, round(steps * warmup))
    if step < rise:
        return peak * (step + 1) / rise
    return peak * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))
