"""The shifts change what they say, to the gray level; at strength 0 they change nothing."""

import numpy as np
import pytest

from ral.config.robustness import ShiftsConfig
from ral.robustness.pixels import KINDS, Kind, Shift, requested

IDS = ["a", "b", "c"]
IDENTITIES: dict[Kind, float] = {
    "bits": 8, "blur": 0, "noise": 0, "gamma": 1, "downscale": 1, "rotate": 0, "corners": 0,
}  # fmt: skip


@pytest.fixture
def pixels() -> np.ndarray:
    """Images with all gray levels."""
    return np.random.default_rng(0).integers(0, 256, (3, 32, 32), dtype=np.uint8)


def ramp() -> np.ndarray:
    """One smooth image: gray level 8 x column."""
    return np.tile(np.arange(0, 256, 8, dtype=np.uint8), (32, 1))[None]


@pytest.mark.parametrize("kind", IDENTITIES)
def test_strength_zero_changes_no_bit(pixels: np.ndarray, kind: Kind) -> None:
    before = pixels.copy()
    changed = Shift(kind, IDENTITIES[kind]).apply(pixels, IDS, 0)
    assert changed.dtype == np.uint8
    assert np.array_equal(changed, before)
    assert np.array_equal(pixels, before)


@pytest.mark.parametrize("shift", requested(ShiftsConfig()), ids=lambda shift: shift.name)
def test_an_image_depends_on_no_other(pixels: np.ndarray, shift: Shift) -> None:
    before = pixels.copy()
    together = shift.apply(pixels, IDS, 0)
    assert np.array_equal(pixels, before), "the input was changed"
    assert not np.array_equal(together, before)
    assert together.shape == before.shape
    assert together.dtype == np.uint8
    alone = [shift.apply(pixels[[row]], [IDS[row]], 0)[0] for row in (2, 0, 1)]
    assert np.array_equal(together[[2, 0, 1]], np.stack(alone))


def test_jpeg_of_quality_100_is_within_rounding_and_lower_qualities_lose_more(pixels: np.ndarray) -> None:
    def loss(quality: float) -> float:
        return float(np.abs(Shift("jpeg", quality).apply(pixels, IDS, 0).astype(int) - pixels).mean())

    assert np.abs(Shift("jpeg", 100).apply(pixels, IDS, 0).astype(int) - pixels).max() <= 2
    assert loss(100) < loss(95) < loss(75) < loss(50) < loss(30)


def test_bits_and_gamma_are_tables_of_gray_levels() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    one, four = (Shift("bits", bits).apply(levels, ["a"], 0).ravel() for bits in (1, 4))
    assert set(one.tolist()) == {0, 255}
    assert one.tolist() == [0] * 128 + [255] * 128
    assert len(set(four.tolist())) == 16
    assert four[[0, 15, 16, 255]].tolist() == [0, 0, 17, 255]
    darker = Shift("gamma", 2.0).apply(levels, ["a"], 0).ravel()
    assert darker[[0, 128, 255]].tolist() == [0, round(255 * (128 / 255) ** 2), 255]


def test_noise_has_the_deviation_asked_for_and_follows_from_image_and_seed() -> None:
    gray = np.full((2, 64, 64), 128, np.uint8)
    noisy = Shift("noise", 10).apply(gray, ["a", "b"], 3)
    assert noisy.astype(float).std() == pytest.approx(10, rel=0.05)
    assert noisy.astype(float).mean() == pytest.approx(128, abs=0.5)
    assert not np.array_equal(noisy[0], noisy[1])
    assert np.array_equal(noisy[1], Shift("noise", 10).apply(gray[:1], ["b"], 3)[0])
    assert not np.array_equal(noisy[1], Shift("noise", 10).apply(gray[:1], ["b"], 4)[0])


def test_blur_spreads_a_point_by_its_deviation() -> None:
    point = np.zeros((1, 100, 100), np.uint8)
    point[0, 50, 50] = 255
    blurred = Shift("blur", 2).apply(point, ["a"], 0)[0].astype(float)
    assert blurred[50, 50] == pytest.approx(255 / (2 * np.pi * 2**2), abs=0.6)
    assert blurred[50, 52] == pytest.approx(blurred[50, 50] * np.exp(-0.5), abs=0.6)


def test_half_resolution_removes_what_pixels_alternate() -> None:
    stripes = np.tile(np.array([0, 200], np.uint8), (32, 16))[None]
    assert set(Shift("downscale", 2).apply(stripes, ["a"], 0).ravel().tolist()) == {100}
    smooth = Shift("downscale", 2).apply(ramp(), ["a"], 0).astype(int)
    assert np.abs(smooth - ramp())[:, :, 1:-1].max() <= 1


def test_rotation_is_counterclockwise_around_the_centre() -> None:
    pixels = np.zeros((1, 33, 33), np.uint8)
    pixels[0, 16, 28:31] = 255  # on the right
    turned = Shift("rotate", 45).apply(pixels, ["a"], 0)[0]
    row, column = np.argwhere(turned > 100).mean(axis=0)
    assert row < 10  # now at the top right
    assert column > 22


def test_corners_are_black_and_the_rest_stays(pixels: np.ndarray) -> None:
    masked = Shift("corners", 25).apply(pixels, IDS, 0)
    side = 8
    for rows in (slice(side), slice(-side, None)):
        for columns in (slice(side), slice(-side, None)):
            assert not masked[:, rows, columns].any()
    assert np.array_equal(masked[:, side:-side], pixels[:, side:-side])
    assert np.array_equal(masked[:, :, side:-side], pixels[:, :, side:-side])


def test_a_flip_is_its_own_inverse(pixels: np.ndarray) -> None:
    flipped = Shift("flip").apply(pixels, IDS, 0)
    assert np.array_equal(flipped[0, :, 0], pixels[0, :, -1])
    assert np.array_equal(Shift("flip").apply(flipped, IDS, 0), pixels)


def test_shifts_are_named_by_kind_and_strength() -> None:
    names = [shift.name for shift in requested(ShiftsConfig())]
    assert len(set(names)) == len(names)
    assert {"jpeg_95", "jpeg_30", "bits_4", "gamma_0.7", "downscale_2", "flip"} <= set(names)
    assert {shift.kind for shift in requested(ShiftsConfig())} == set(KINDS)
    none = ShiftsConfig(**{kind: False if kind == "flip" else [] for kind in KINDS})
    assert requested(none) == []
    assert Shift("jpeg", 50).label == "JPEG, quality 50"
    with pytest.raises(ValueError, match="listed twice"):
        ShiftsConfig(blur=[1.0, 1.0])
