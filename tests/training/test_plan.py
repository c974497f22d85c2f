"""What is trained when is a pure function; processes only share it out."""

import itertools

import numpy as np
import pytest

from ral.training import plan


def test_order_is_a_permutation_that_seed_and_epoch_fix() -> None:
    rows = np.arange(100, 200)
    order = plan.epoch_order(rows, 0, 3)
    assert sorted(order) == list(rows)
    assert (order == plan.epoch_order(rows, 0, 3)).all()
    assert (order != plan.epoch_order(rows, 0, 4)).any()
    assert (order != plan.epoch_order(rows, 1, 3)).any()


@pytest.mark.parametrize(("world", "micro"), [(1, 24), (1, 8), (2, 12), (2, 4), (4, 6), (4, 1)])
def test_shares_make_up_the_batch(world: int, micro: int) -> None:
    batch = np.arange(24)
    parts = [part for rank in range(world) for part in plan.share(batch, rank, world, micro)]
    assert (np.concatenate(parts) == batch).all()
    assert all(len(part) == micro for part in parts)


def test_learning_rate_rises_then_falls_to_zero() -> None:
    rates = [plan.learning_rate(step, 100, 1.0, 0.2) for step in range(100)]
    assert rates[0] == pytest.approx(0.05)
    assert max(rates) == rates[19] == 1.0
    assert all(a >= b for a, b in itertools.pairwise(rates[19:]))
    assert rates[-1] < 0.001
    assert plan.learning_rate(0, 1, 1.0, 0.0) == 1.0
