"""Samplers: which images, how often, in which order, and that the result depends on the arguments only."""

import numpy as np
import pytest
from pydantic import ValidationError

from ral.config.sampler import RepeatFactorOptions, SamplerConfig, TemperatureOptions
from ral.training.samplers import epoch_images, epoch_rows, repeat_factors, temperature

NAMES = ["uniform", "inverse_frequency", "class_aware", "repeat_factor", "temperature"]


def long_tailed(images: int = 20_000) -> np.ndarray:
    """Labels of six findings from 30 % to 0.1 %, some unknown, and a seventh that no image shows."""
    rng = np.random.default_rng(7)
    targets = (rng.random((images, 7)) < [0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0]).astype(np.float32)
    targets[rng.random(targets.shape) < 0.05] = np.nan
    return targets


def draw(name: str, targets: np.ndarray, epoch: int = 0, epochs: int = 10, **options) -> np.ndarray:
    """How often each image occurs in an epoch."""
    config = SamplerConfig.model_validate({"name": name, **({name: options} if options else {})})
    chosen = epoch_rows(config, targets, np.arange(len(targets)), 3, epoch, epochs)
    assert len(chosen) == epoch_images(config, targets)
    return np.bincount(chosen, minlength=len(targets))


@pytest.mark.parametrize("name", NAMES)
def test_seed_and_epoch_alone_decide(name: str) -> None:
    targets, config = long_tailed(500), SamplerConfig(name=name)
    rows = np.arange(1000, 1500)
    first = epoch_rows(config, targets, rows, 0, 2, 10)
    assert first.dtype == np.int64
    assert set(first) <= set(rows)
    assert (first == epoch_rows(config, targets.copy(), rows.copy(), 0, 2, 10)).all()
    for seed, epoch in ((1, 2), (0, 3)):
        different = epoch_rows(config, targets, rows, seed, epoch, 10)
        assert len(different) == len(first)
        assert (different != first).any()


def test_uniform_is_the_plain_order() -> None:
    targets, rows = long_tailed(300), np.arange(50, 350)
    for seed, epoch in ((0, 0), (5, 9)):
        mine = epoch_rows(SamplerConfig(), targets, rows, seed, epoch, 10)
        assert (mine == np.random.default_rng([seed, epoch]).permutation(rows)).all()


def test_temperature_sampling_has_the_expected_gradient_of_weights() -> None:
    """Drawing groups by n^(1/τ), or weighting every image by n^(1/τ − 1), is one gradient in expectation; by
    enumeration of the draws of one image. The gradient of the sampler has the lower variance.
    """
    sizes, tau = np.array([60, 12, 3]), 3.0
    group = np.repeat(np.arange(3), sizes)
    gradients = np.random.default_rng(0).normal(size=(75, 4)) + group[:, None]
    chances = (sizes ** (1 / tau) / (sizes ** (1 / tau)).sum())[group] / sizes[group]
    weights = sizes[group] ** (1 / tau - 1.0)
    weights /= weights.mean()  # the same mean length of a step
    drawn, weighted = chances @ gradients, (weights[:, None] * gradients).mean(axis=0)
    np.testing.assert_allclose(drawn, weighted, rtol=0, atol=1e-12)

    def variance(probabilities: np.ndarray, terms: np.ndarray) -> float:
        return float(probabilities @ (terms**2).sum(axis=1) - (probabilities @ terms) ** 2 @ np.ones(4))

    assert variance(chances, gradients) < variance(np.full(75, 1 / 75), weights[:, None] * gradients)
    # The sampler draws groups with these chances, up to rounding.
    targets = np.zeros((75, 2))
    targets[60:72, 0] = targets[72:, 1] = 1
    times = draw("temperature", targets, start=tau, end=tau)
    counts = np.bincount(group, weights=times)
    assert np.abs(counts / 75 - np.bincount(group, weights=chances)).max() < 1 / 75


@pytest.mark.parametrize("name", NAMES)
def test_order_is_mixed(name: str) -> None:
    """No sampler yields its images group by group: each half of the epoch has about half of the positives."""
    targets = long_tailed()
    chosen = epoch_rows(SamplerConfig(name=name), targets, np.arange(len(targets)), 0, 0, 10)
    positives = targets[chosen, 0] == 1
    assert positives[: len(chosen) // 2].mean() == pytest.approx(positives.mean(), abs=0.02)


def test_inverse_frequency_by_the_rarest_finding() -> None:
    # Finding 0 on four images, finding 1 on two (one of them has both), two images without: chances 1/4, 1/2,
    # 1/2.
    targets = np.array([[1, 0], [1, 0], [1, 0], [1, 1], [0, 1], [0, 0], [np.nan, 0]], np.float32)
    times = sum(draw("inverse_frequency", targets, epoch, 3000) for epoch in range(3000))
    expected = np.array([1 / 4] * 3 + [1 / 2] * 4)
    assert times.sum() == 7 * 3000
    assert times / times.sum() == pytest.approx(expected / expected.sum(), abs=0.01)


def test_class_aware_gives_every_group_the_same_places() -> None:
    # Groups: finding 0 (images 0-3), finding 1 (images 3, 4), none (5). Six samples: two each, cyclic.
    targets = np.array([[1, 0], [1, 0], [1, 0], [1, 1], [0, 1], [0, np.nan]], np.float32)
    for epoch in range(20):
        times = draw("class_aware", targets, epoch)
        assert times[5] == 2
        assert times[4] == 1  # finding 1: one sample for each of its two images
        assert times[:4].sum() == 3
        assert times[:3].max() <= 1  # no image of finding 0 is repeated before the others were drawn


def test_class_aware_frequencies_on_many_images() -> None:
    targets = long_tailed()
    positive = targets == 1
    seen = sum(draw("class_aware", targets, epoch) for epoch in range(10)) / 10
    groups = 7  # six findings, and the images without
    chance = (positive[:, :6] / positive[:, :6].sum(axis=0)).sum(axis=1)
    none = ~positive.any(axis=1)
    chance += none / none.sum()
    expected = len(targets) * chance / groups
    for images in (*positive[:, :6].T, none):
        assert seen[images].sum() == pytest.approx(expected[images].sum(), rel=0.02)


def test_repeat_factors_by_hand() -> None:
    # 100 images: finding 0 on 50, finding 1 on 4, finding 2 on 1, threshold 0.16: √(.16/.04) = 2, √(.16/.01)
    # = 4.
    targets = np.zeros((100, 4), np.float32)
    targets[:50, 0] = 1
    targets[49:53, 1] = 1
    targets[52, 2] = 1
    targets[60, 2] = np.nan
    factors = repeat_factors(RepeatFactorOptions(threshold=0.16), targets)
    assert factors == pytest.approx([1] * 49 + [2] * 3 + [4] + [1] * 47)
    assert draw("repeat_factor", targets, threshold=0.16).tolist() == factors.round().tolist()
    assert repeat_factors(RepeatFactorOptions(threshold=0.16, max_repeat=3), targets).max() == 3


def test_repeat_factor_rounds_up_and_down_to_the_mean() -> None:
    targets = long_tailed(2000)
    factors = repeat_factors(RepeatFactorOptions(), targets)
    fractional = factors % 1 > 0
    assert fractional.sum() > 20
    times = np.array([draw("repeat_factor", targets, epoch) for epoch in range(400)])
    assert (times >= 1).all()
    assert (times >= np.floor(factors)).all()
    assert (times <= np.ceil(factors)).all()
    total = (factors - np.floor(factors)).sum()
    assert times.mean(axis=0) == pytest.approx(
        factors, abs=1 / total + 0.12
    )  # 400 draws: 4 deviations of 0.025
    assert times.mean() == pytest.approx(factors.mean(), rel=1e-3)


def test_temperature_cools_in_a_straight_line() -> None:
    options = TemperatureOptions(start=5, end=1, share=0.5)
    assert [temperature(options, epoch, 8) for epoch in range(8)] == [5, 4, 3, 2, 1, 1, 1, 1]
    assert temperature(TemperatureOptions(share=0), 0, 8) == 1
    with pytest.raises(ValidationError, match="must not be above start"):
        TemperatureOptions(start=2, end=3)


def test_temperature_shares_by_hand() -> None:
    # Groups by the rarest finding: 16 images of finding 0 alone, 4 of finding 1 (two of them also have 0), 1
    # without.
    targets = np.zeros((21, 2), np.float32)
    targets[:18, 0] = 1
    targets[16:20, 1] = 1
    times = draw("temperature", targets, epoch=0, start=2.0, end=2.0)
    # √16 : √4 : √1 of 21 samples = 12 : 6 : 3
    assert [times[:16].sum(), times[16:20].sum(), times[20]] == [12, 6, 3]
    assert times[:16].max() == 1
    assert set(times[16:20]) == {1, 2}


def test_temperature_one_is_the_data_as_they_are() -> None:
    targets = long_tailed(3000)
    assert (draw("temperature", targets, epoch=9, epochs=10) == 1).all()
    assert (draw("temperature", targets, epoch=0, epochs=10) != 1).any()


def test_temperature_shares_on_many_images() -> None:
    targets = long_tailed()
    positive = targets == 1
    counts = np.append(positive.sum(axis=0), (~positive.any(axis=1)).sum()).astype(float)
    group = np.array(
        [min(np.flatnonzero(row), key=lambda c: counts[c]) if row.any() else 7 for row in positive]
    )
    sizes = np.bincount(group, minlength=8).astype(float)
    weights = np.where(sizes > 0, sizes ** (1 / 5), 0)
    samples = np.bincount(group, weights=draw("temperature", targets), minlength=8)
    assert samples == pytest.approx(len(targets) * weights / weights.sum(), abs=1)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "targets",
    [
        np.zeros((12, 3), np.float32),
        np.full((12, 3), np.nan, np.float32),
        np.ones((1, 3), np.float32),
        np.zeros((1, 3), np.float32),
        np.zeros((5, 0), np.float32),
    ],
    ids=["no positive", "nothing known", "one image", "one image without", "no findings"],
)
def test_degenerate_data(name: str, targets: np.ndarray) -> None:
    with np.errstate(all="raise"):
        times = draw(name, targets)
    if name == "inverse_frequency":
        assert times.sum() == len(targets)  # drawn with replacement, so not every image need be seen
    else:
        assert (times == 1).all()


def test_labels_and_rows_belong_together() -> None:
    with pytest.raises(ValueError, match="3 rows of labels for 2 images"):
        epoch_rows(SamplerConfig(), np.zeros((3, 1), np.float32), np.arange(2), 0, 0, 1)
