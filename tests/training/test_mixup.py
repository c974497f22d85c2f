"""Mixup: partners and share are drawn for the global batch; images and losses are mixed with the same share."""

import numpy as np
import pytest
import torch

from ral.training.mixup import draw_mixture, mixed


def test_partners_are_a_permutation_that_the_seed_decides() -> None:
    one, again, other = (draw_mixture(100, 0.3, seed) for seed in (1, 1, 2))
    assert sorted(one.partners) == list(range(100))
    assert one.share == again.share
    assert np.array_equal(one.partners, again.partners)
    assert one.share != other.share
    assert not np.array_equal(one.partners, other.partners)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 8.0])
def test_the_share_is_drawn_from_beta(alpha: float) -> None:
    shares = np.array([draw_mixture(2, alpha, seed).share for seed in range(4000)])
    assert ((shares >= 0) & (shares <= 1)).all()
    deviation = 1 / np.sqrt(8 * alpha + 4)
    assert shares.mean() == pytest.approx(0.5, abs=4 * deviation / np.sqrt(4000))
    assert shares.std() == pytest.approx(deviation, rel=0.05)


def test_the_halves_are_mixed_by_their_shares() -> None:
    images = torch.arange(24.0).reshape(4, 1, 2, 3)
    torch.testing.assert_close(mixed(images, 0.75), 0.75 * images[:2] + 0.25 * images[2:])
    assert torch.equal(mixed(images, 1.0), images[:2])
