"""Properties of the samplers, for any labels: unknown ones, findings without a positive image, images of several findings."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ral.config.sampler import RepeatFactorOptions, SamplerConfig
from ral.training.samplers import epoch_images, epoch_rows, repeat_factors

NAMES = ["uniform", "inverse_frequency", "class_aware", "repeat_factor", "temperature"]


@st.composite
def label_tables(draw: st.DrawFn) -> np.ndarray:
    """Labels float32 [images, findings] of findings from frequent to absent."""
    images, findings = draw(st.integers(1, 120)), draw(st.integers(0, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    targets = (rng.random((images, findings)) < np.geomspace(0.6, 0.01, findings)).astype(np.float32)
    targets[rng.random(targets.shape) < draw(st.sampled_from([0.0, 0.2]))] = np.nan
    return targets


def groups(targets: np.ndarray) -> list[np.ndarray]:
    """The images of each finding, then those without one; empty groups are left out."""
    positive = targets == 1
    members = [np.flatnonzero(column) for column in (*positive.T, ~positive.any(axis=1))]
    return [images for images in members if len(images)]


def rarest(targets: np.ndarray) -> list[np.ndarray]:
    """Disjoint groups: each image under the finding with the fewest positive images among its own."""
    positive = targets == 1
    counts = positive.sum(axis=0)
    key = [
        min(np.flatnonzero(row), key=lambda finding: (counts[finding], finding)) if row.any() else -1
        for row in positive
    ]
    return [np.flatnonzero(np.array(key) == value) for value in sorted(set(key))]


def times(name: str, targets: np.ndarray, seed: int = 0, epoch: int = 0) -> np.ndarray:
    """How often each image occurs in an epoch."""
    chosen = epoch_rows(SamplerConfig(name=name), targets, np.arange(len(targets)), seed, epoch, 10)
    return np.bincount(chosen, minlength=len(targets))


@pytest.mark.parametrize("name", NAMES)
@given(targets=label_tables(), seed=st.integers(0, 2**31), epoch=st.integers(0, 9))
def test_an_epoch_follows_from_its_arguments(name: str, targets: np.ndarray, seed: int, epoch: int) -> None:
    config, positions = SamplerConfig(name=name), np.arange(len(targets))
    rows = positions * 7 + 3
    first = epoch_rows(config, targets, rows, seed, epoch, 10)
    assert len(first) == epoch_images(config, targets)
    assert set(first.tolist()) <= set(rows.tolist())
    np.testing.assert_array_equal(first, epoch_rows(config, targets, rows, seed, epoch, 10))
    # The rows are names: which are drawn depends on the labels.
    np.testing.assert_array_equal(first, rows[epoch_rows(config, targets, positions, seed, epoch, 10)])


@given(targets=label_tables(), seed=st.integers(0, 2**31))
def test_uniform_holds_every_image_once(targets: np.ndarray, seed: int) -> None:
    assert (times("uniform", targets, seed) == 1).all()


@given(targets=label_tables(), seed=st.integers(0, 2**31))
def test_class_aware_draws_as_often_for_every_group(targets: np.ndarray, seed: int) -> None:
    drawn, members = times("class_aware", targets, seed), groups(targets)
    each = len(targets) // len(members)
    fewest, most = np.zeros(len(targets)), np.zeros(len(targets))
    for images in members:
        # A group of n images has `each` draws or one more, and cycles through its images.
        fewest[images] += each // len(images)
        most[images] += -(-(each + 1) // len(images))
        assert drawn[images].sum() >= each
    assert (drawn >= fewest).all()
    assert (drawn <= most).all()


@given(targets=label_tables(), seed=st.integers(0, 2**31), threshold=st.floats(0.001, 1))
def test_repeat_factor_rounds_each_factor_up_or_down(
    targets: np.ndarray, seed: int, threshold: float
) -> None:
    options = RepeatFactorOptions(threshold=threshold)
    config = SamplerConfig(name="repeat_factor", repeat_factor=options)
    chosen = epoch_rows(config, targets, np.arange(len(targets)), seed, 0, 10)
    drawn, factors = np.bincount(chosen, minlength=len(targets)), repeat_factors(options, targets)
    assert (drawn >= np.floor(factors)).all()
    assert (drawn <= np.ceil(factors)).all()
    assert factors.min() >= 1
    assert factors.max() <= options.max_repeat
    # An image is repeated as its rarest finding asks for, by the paper's formula.
    for images in rarest(targets):
        positive = targets[images[0]] == 1
        share = (targets[:, positive] == 1).mean(axis=0).min() if positive.any() else 1.0
        expected = min(max(1.0, np.sqrt(threshold / share)), options.max_repeat)
        assert factors[images] == pytest.approx(expected, rel=1e-6)


@given(targets=label_tables(), seed=st.integers(0, 2**31), epoch=st.integers(0, 9))
def test_temperature_gives_each_group_its_share(targets: np.ndarray, seed: int, epoch: int) -> None:
    drawn, members = times("temperature", targets, seed, epoch), rarest(targets)
    tau = max(1.0, 5 - 4 * epoch / 5)
    weights = np.array([len(images) for images in members]) ** (1 / tau)
    exact = len(targets) * weights / weights.sum()
    for images, share in zip(members, exact, strict=True):
        assert abs(drawn[images].sum() - share) < 1 + 1e-6
        assert drawn[images].max() - drawn[images].min() <= 1
    if tau == 1:
        assert (drawn == 1).all()


def expected(name: str, targets: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Expected draws of each image, in as many epochs as `total` is the sum of."""
    draws = total.sum()
    if name == "class_aware":
        share = np.zeros(len(targets))
        for images in groups(targets):
            share[images] += 1 / len(images)
        return draws * share / share.sum()
    if name == "temperature":  # how often a group is drawn is tested above; within it all are alike
        share = np.zeros(len(targets))
        for images in rarest(targets):
            share[images] = total[images].mean()
        return share
    if name == "repeat_factor":
        factors = repeat_factors(RepeatFactorOptions(), targets)
        whole = np.floor(factors)
        fraction = (factors - whole).sum()
        scale = int(fraction) / fraction if fraction >= 1 else 0.0
        share = whole + (factors - whole) * scale
        return draws * share / share.sum()
    positive, weights = targets == 1, np.zeros(len(targets))
    for images in rarest(targets):
        own = positive[images[0]]
        weights[images] = 1 / (
            positive[:, own].sum(axis=0).min() if own.any() else (~positive.any(axis=1)).sum()
        )
    return draws * weights / weights.sum()


@pytest.mark.parametrize("name", NAMES[1:])
@settings(max_examples=8)
@given(targets=label_tables(), seed=st.integers(0, 2**31))
def test_each_image_is_drawn_as_often_as_its_group_says(name: str, targets: np.ndarray, seed: int) -> None:
    """Within six standard errors over many epochs; an image of several findings may be drawn for each of them."""
    epochs = 100
    config, positions = SamplerConfig(name=name), np.arange(len(targets))
    # In the first of very many epochs the temperature is that of the start.
    total = sum(
        np.bincount(epoch_rows(config, targets, positions, seed, epoch, 10**6), minlength=len(targets))
        for epoch in range(epochs)
    )
    mean = expected(name, targets, total)
    draws_for = np.maximum((targets == 1).sum(axis=1), 1)
    variance = (
        np.maximum(mean, epochs * draws_for / 4) if name == "inverse_frequency" else epochs * draws_for / 2
    )
    assert (np.abs(total - mean) <= 6 * np.sqrt(variance) + 1).all()
