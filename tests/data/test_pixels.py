"""Decoding: area averaging, and no film that is not one."""

import io
import pickle

import numpy as np
import pytest
from PIL import Image

from ral.data.pixels import MOST_PIXELS, BadFilm, decode
from ral.errors import UserError


def png(image: np.ndarray, **options: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, options.get("format", "PNG"))
    return stream.getvalue()


def test_same_size_is_lossless() -> None:
    image = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
    assert (decode(png(image), 32, "a") == image).all()


def test_resize_averages_areas() -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    means = image.reshape(16, 4, 16, 4).mean((1, 3))
    assert np.abs(decode(png(image), 16, "a") - means).max() < 1  # Pillow rounds once per axis


def test_colour_and_alpha_become_gray() -> None:
    gray = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
    assert (decode(png(np.stack([gray] * 3, -1)), 32, "a") == gray).all()
    rgba = np.stack([gray] * 3 + [np.full_like(gray, 255)], -1)
    assert (decode(png(rgba), 32, "a") == gray).all()


@pytest.mark.parametrize("content", [b"", b"not an image", b"GIF89a" + b"\0" * 50])
def test_no_image(content: bytes) -> None:
    with pytest.raises(UserError, match=r"Film x in y is not an image .*Replace the film"):
        decode(content, 32, "Film x in y")


def test_cut_short() -> None:
    whole = png(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8))
    with pytest.raises(UserError, match="Film x cannot be decoded"):
        decode(whole[: len(whole) // 2], 32, "Film x")


def test_bomb() -> None:
    side = int(MOST_PIXELS**0.5) + 1
    stream = io.BytesIO()
    Image.new("1", (side, side)).save(stream, "PNG")
    with pytest.raises(UserError, match="too large to be a film"):
        decode(stream.getvalue(), 32, "Film x")


def test_16_bits_are_averaged_at_full_depth_and_scaled_to_their_own_range() -> None:
    image = np.random.default_rng(0).integers(300, 3700, (64, 64)).astype(np.uint16)
    image[:4, :4], image[-4:, -4:] = 300, 3700
    means = image.reshape(16, 4, 16, 4).mean((1, 3))
    wanted = (means - 300) / 3400 * 255
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    read = decode(stream.getvalue(), 16, "a")
    assert np.abs(read - wanted).max() < 0.51
    assert (read[0, 0], read[-1, -1]) == (0, 255)


def test_palette_becomes_gray() -> None:
    image = Image.fromarray(np.tile(np.array([0, 1], np.uint8), (32, 16)), "P")
    image.putpalette([10, 10, 10, 200, 200, 200])
    stream = io.BytesIO()
    image.save(stream, "PNG")
    assert set(decode(stream.getvalue(), 32, "a").ravel()) == {10, 200}


def test_pad_keeps_the_shape_of_the_film() -> None:
    image = np.random.default_rng(0).integers(100, 256, (64, 32), dtype=np.uint8)
    read = decode(png(image), 32, "a", "pad")
    assert np.abs(read[:, 8:24] - image.reshape(32, 2, 16, 2).mean((1, 3))).max() <= 1
    assert not read[:, :8].any()
    assert not read[:, 24:].any()


def test_crop_keeps_the_middle() -> None:
    image = np.random.default_rng(0).integers(0, 256, (32, 48), dtype=np.uint8)
    assert (decode(png(image), 32, "a", "crop") == image[:, 8:40]).all()


@pytest.mark.parametrize("fit", ["pad", "crop"])
def test_fit_of_a_16_bit_film(fit: str) -> None:
    image = np.random.default_rng(0).integers(1000, 3000, (64, 32)).astype(np.uint16)
    image[20, 20], image[20, 21] = 1000, 3000
    read = decode(png(image), 64 if fit == "pad" else 32, "a", fit)  # type: ignore[arg-type]
    exact = np.rint((image - 1000.0) * 255 / 2000)
    inner = read[:, 16:48] if fit == "pad" else read
    assert np.abs(inner - (exact if fit == "pad" else exact[16:48])).max() <= 1
    if fit == "pad":
        assert not read[:, :16].any()


def test_1_by_1_is_no_film() -> None:
    with pytest.raises(BadFilm, match=r"is too small to be a film \(1 x 1 pixels\)"):
        decode(png(np.zeros((1, 1), np.uint8)), 32, "Film x")


@pytest.mark.parametrize("image", [np.full((32, 32), 7, np.uint8), np.full((32, 32), 700, np.uint16)])
def test_blank(image: np.ndarray) -> None:
    with pytest.raises(BadFilm, match=r"is blank \(every pixel is 7(00)?\)"):
        decode(png(image), 32, "Film x")


def test_bad_film_survives_the_way_from_a_worker() -> None:
    error = pickle.loads(pickle.dumps(BadFilm("Film x", "is blank", "every pixel is 7")))  # noqa: S301
    assert isinstance(error, BadFilm)
    assert (str(error), error.reason) == (str(BadFilm("Film x", "is blank", "every pixel is 7")), "is blank")
