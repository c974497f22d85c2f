"""Batches, micro-batches and learning rate are pure functions."""

import itertools

import numpy as np
import pytest

from ral.training import plan


@pytest.mark.parametrize(("images", "size"), [(1000, 128), (1024, 128), (1, 128), (127, 128), (129, 128)])
def test_batches_hold_every_image_once_and_none_is_small(images: int, size: int) -> None:
    offsets = plan.batch_offsets(images, size)
    sizes = np.diff(offsets)
    assert offsets[0] == 0
    assert offsets[-1] == images
    assert len(sizes) == -(-images // size)
    assert sizes.max() <= size
    assert sizes.max() - sizes.min() <= 1


@pytest.mark.parametrize("images", [24, 23, 17])
@pytest.mark.parametrize(("world", "accumulation"), [(1, 1), (1, 3), (2, 1), (2, 3), (4, 1), (4, 4)])
def test_shares_make_up_the_batch(images: int, world: int, accumulation: int) -> None:
    batch = np.arange(images)
    parts = [
        part
        for rank in range(world)
        for part in plan.split_into_micro_batches(batch, rank, world, accumulation)
    ]
    assert (np.concatenate(parts) == batch).all()
    assert len(parts) == world * accumulation
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_learning_rate_rises_then_falls_to_zero() -> None:
    rates = [plan.learning_rate(step, 100, 1.0, 0.2) for step in range(100)]
    assert rates[0] == pytest.approx(0.05)
    assert max(rates) == rates[19] == 1.0
    assert all(a >= b for a, b in itertools.pairwise(rates[19:]))
    assert rates[-1] < 0.001
    assert plan.learning_rate(0, 1, 1.0, 0.0) == 1.0
