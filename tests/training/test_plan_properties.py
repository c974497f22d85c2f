"""Properties of the training plan, for any number of images, batch size, world size and accumulation."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ral.training import plan

IMAGES, BATCH = st.integers(1, 5000), st.integers(1, 600)
WORLD, ACCUMULATION = st.integers(1, 9), st.integers(1, 7)


@given(IMAGES, BATCH, WORLD, ACCUMULATION)
def test_every_image_of_an_epoch_is_in_one_micro_batch_of_one_rank(
    images: int, batch_size: int, world: int, accumulation: int
) -> None:
    epoch = np.random.default_rng(images).permutation(images)
    offsets = plan.batch_offsets(images, batch_size)
    by_rank: list[list[np.ndarray]] = [[] for _ in range(world)]
    for start, end in itertools.pairwise(offsets):
        parts = []
        for rank in range(world):
            own = plan.split_into_micro_batches(epoch[start:end], rank, world, accumulation)
            assert len(own) == accumulation
            parts += own
            by_rank[rank] += own
        # The ranks one after another are the global batch, in its order: none is padded, none is cut off.
        assert (np.concatenate(parts) == epoch[start:end]).all()
        sizes = [len(part) for part in parts]
        assert max(sizes) - min(sizes) <= 1
    of_ranks = [set(np.concatenate(own).tolist()) for own in by_rank]
    assert sum(map(len, of_ranks)) == len(set.union(*of_ranks)) == images


@given(IMAGES, BATCH)
def test_batches_are_full_but_for_what_evens_them_out(images: int, batch_size: int) -> None:
    sizes = np.diff(plan.batch_offsets(images, batch_size))
    assert sizes.sum() == images
    assert sizes.min() >= 1
    assert sizes.max() <= batch_size
    assert sizes.max() - sizes.min() <= 1
    # One batch fewer could not hold them.
    assert (len(sizes) - 1) * batch_size < images


@given(st.integers(1, 400), st.floats(1e-6, 10), st.floats(0, 1))
def test_the_learning_rate_has_one_peak_and_is_never_zero(steps: int, peak: float, warmup: float) -> None:
    rates = np.array([plan.learning_rate(step, steps, peak, warmup) for step in range(steps)])
    assert rates.max() == pytest.approx(peak)
    assert (rates > 0).all()
    top = int(np.flatnonzero(rates >= peak * (1 - 1e-12))[0])
    # Warmup is linear, from one step's share of the peak.
    assert rates[: top + 1] == pytest.approx(peak * np.arange(1, top + 2) / (top + 1))
    assert (np.diff(rates[top:]) <= peak * 1e-12).all()


@given(st.integers(2, 400), st.floats(0, 0.5))
def test_the_cosine_is_symmetric_about_half_of_the_peak(steps: int, warmup: float) -> None:
    start = max(1, round(steps * warmup))
    rates = np.array([plan.learning_rate(step, steps, 1.0, warmup) for step in range(start, steps + 1)])
    assert rates + rates[::-1] == pytest.approx(1.0)
    assert rates[-1] == pytest.approx(0, abs=1e-12)
