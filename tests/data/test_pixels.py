"""Decoding: area averaging, and no film that is not one; shards give back what was put in."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ral.data.pixels import MOST_PIXELS, decode, open_shard, write_shard
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


def test_shard_round_trip_is_mapped_not_copied(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8), dtype=np.uint8)
    ids = [f"{n}.png" for n in range(5)]
    write_shard(tmp_path / "a.arrow", ids, images)
    read_ids, read = open_shard(tmp_path / "a.arrow", 8)
    assert read_ids == ids
    assert (read == images).all()
    assert not read.flags.writeable
    assert not read.flags.owndata
    write_shard(tmp_path / "b.arrow", ids, images)
    assert (tmp_path / "a.arrow").read_bytes() == (tmp_path / "b.arrow").read_bytes()
