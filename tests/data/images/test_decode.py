"""Decoding: area averaging, and no image that is not one."""

import io
import pickle
import struct
import warnings
import zlib
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image, ImageOps

from ral.data.images import resize
from ral.data.images.bad_image import BadImage
from ral.data.images.decode import NOTES, decode, decode_with_note
from ral.data.images.limits import MAX_PIXELS
from ral.data.images.resize import area_sums
from ral.errors import UserError


def png(image: np.ndarray, **options: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, options.get("format", "PNG"))
    return stream.getvalue()


def test_same_size_is_lossless() -> None:
    image = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
    assert (decode(png(image), 32, "a") == image).all()


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize(
    ("rows", "columns", "height", "width"),
    [(64, 64, 16, 16), (10, 7, 4, 5), (9, 13, 16, 5), (30, 20, 7, 20), (5, 5, 5, 8), (3, 200, 3, 7)],
)
@pytest.mark.parametrize("band", [resize.BAND, 40])
def test_resize_averages_areas_exactly(
    kind: type, rows: int, columns: int, height: int, width: int, band: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where sizes are no whole multiples, and where a large image is averaged a few rows at a time."""

    def cover(source: int, target: int) -> np.ndarray:
        parts = [[Fraction(0)] * source for _ in range(target)]
        for at in range(source * target):  # both axes cut into source * target parts
            parts[at // source][at // target] += Fraction(1, source)
        return np.array(parts, object)

    monkeypatch.setattr(resize, "BAND", band)
    values = np.random.default_rng(0).integers(0, np.iinfo(kind).max + 1, (rows, columns)).astype(kind)
    means = cover(rows, height) @ values.astype(object) @ cover(columns, width).T
    sums = area_sums(values, height, width)
    assert [Fraction(total, values.size) for total in sums.ravel().tolist()] == means.ravel().tolist()


def test_square_is_the_exact_average_rounded_once() -> None:
    """1024 to 224, where Pillow's box filter is far off."""
    image = np.random.default_rng(0).integers(0, 256, (1024, 1024), dtype=np.uint8)
    each = np.repeat(np.repeat(image, 7, 0), 7, 1)  # 32 x 32 of these make a pixel
    means = each.reshape(224, 32, 224, 32).mean((1, 3))
    read = decode(png(image), 224, "a")
    assert np.abs(read - means).max() <= 0.5
    box = np.asarray(Image.fromarray(image).resize((224, 224), Image.Resampling.BOX))
    assert np.abs(box - means).max() > 20


def test_colour_and_alpha_become_gray() -> None:
    gray = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
    assert (decode(png(np.stack([gray] * 3, -1)), 32, "a") == gray).all()
    rgba = np.stack([gray] * 3 + [np.full_like(gray, 255)], -1)
    assert (decode(png(rgba), 32, "a") == gray).all()


@pytest.mark.parametrize("content", [b"", b"not an image", b"GIF89a" + b"\0" * 50])
def test_no_image(content: bytes) -> None:
    with pytest.raises(UserError, match=r"Image x in y is not an image .*Replace the image"):
        decode(content, 32, "Image x in y")


def test_cut_short() -> None:
    whole = png(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8))
    with pytest.raises(UserError, match="Image x cannot be decoded"):
        decode(whole[: len(whole) // 2], 32, "Image x")


def test_bomb() -> None:
    side = int(MAX_PIXELS**0.5) + 1
    with pytest.raises(UserError, match="too large to be an image"):
        decode(raw_png([bytes(side // 8 + 1)] * side, side, 1, 0), 32, "Image x")


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
    for transparency in ({}, {"transparency": b"\x80\x00"}, {"transparency": 1}):
        stream = io.BytesIO()
        image.save(stream, "PNG", **transparency)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert set(decode(stream.getvalue(), 32, "a").ravel()) == {10, 200}


def raw_png(rows: list[bytes], width: int, depth: int, colour: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG file bit by bit: Pillow writes not every kind that it reads."""
    header = struct.pack(">LLBBBBB", width, len(rows), depth, colour, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    content = b"\x89PNG\r\n\x1a\n"
    for kind, body in ((b"IHDR", header), *chunks, (b"IDAT", data), (b"IEND", b"")):
        content += struct.pack(">L", len(body)) + kind + body + struct.pack(">L", zlib.crc32(kind + body))
    return content


@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("palette", [False, True])
def test_few_bits_reach_from_black_to_white(depth: int, palette: bool) -> None:
    levels = 2**depth
    values = np.random.default_rng(0).integers(0, levels, (32, 32))
    bits = (values[..., None] >> np.arange(depth)[::-1]) & 1
    rows = [np.packbits(row.ravel().astype(np.uint8)).tobytes() for row in bits]
    grays = (
        np.arange(levels)[::-1] * (255 // (levels - 1))
        if palette
        else np.arange(levels) * 255 // (levels - 1)
    )
    chunks = [(b"PLTE", np.repeat(grays, 3).astype(np.uint8).tobytes())] if palette else []
    content = raw_png(rows, 32, depth, 3 if palette else 0, *chunks)
    assert (decode(content, 32, "a") == grays[values]).all()


def test_gray_with_transparency_keeps_its_values() -> None:
    gray, alpha = np.random.default_rng(0).integers(0, 256, (2, 32, 32), dtype=np.uint8)
    assert (decode(png(np.stack([gray, alpha], -1)), 32, "a") == gray).all()
    one = raw_png([row.tobytes() for row in gray], 32, 8, 0, (b"tRNS", struct.pack(">H", int(gray[0, 0]))))
    assert (decode(one, 32, "a") == gray).all()


@pytest.mark.parametrize(("colour", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_16_bits_with_colour_or_transparency_are_refused(colour: int, channels: int) -> None:
    """Pillow reads their upper 8 bits alone: an image of 12 bits would be nearly black."""
    values = np.random.default_rng(0).integers(0, 4096, (32, 32 * channels)).astype(">u2")
    with pytest.raises(BadImage, match=r"has 16 bits with colour or transparency \(save it as 16-bit gray\)"):
        decode(raw_png([row.tobytes() for row in values], 32, 16, colour), 32, "Image x")


def exif(orientation: object) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG of 8 bits", "PNG of 16 bits"])
def test_orientation_is_followed(orientation: int, kind: str) -> None:
    """As Pillow follows it, which knows the eight for 8 bits."""
    image = np.random.default_rng(0).integers(0, 256, (40, 24), dtype=np.uint8)
    image = np.repeat(np.repeat(image[::8, ::8], 8, 0), 8, 1)  # blocks of JPEG
    image[0, 0], image[8, 0] = 0, 255
    stream = io.BytesIO()
    stored = image.astype(np.uint16) * 16 if kind == "PNG of 16 bits" else image
    Image.fromarray(stored).save(
        stream, kind.split()[0], exif=exif(orientation), **{"quality": 100} if kind == "JPEG" else {}
    )
    shown = ImageOps.exif_transpose(Image.open(io.BytesIO(png_with(image, orientation))))
    wanted = decode(png(np.asarray(shown)), 32, "a", "pad")
    read = decode(stream.getvalue(), 32, "a", "pad")
    assert np.abs(read.astype(int) - wanted).max() <= (3 if kind == "JPEG" else 0)


def png_with(image: np.ndarray, orientation: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG", exif=exif(orientation))
    return stream.getvalue()


def test_emptied_exif_is_none() -> None:
    image = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
    for body in (b"", bytes(20)):
        content = raw_png([row.tobytes() for row in image], 32, 8, 0, (b"eXIf", body))
        assert decode_with_note(content, 32, "a")[1] == ""


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_orientation_that_does_not_exist_is_none(orientation: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
    assert (decode(png_with(image, orientation), 32, "a") == image).all()


DAMAGED = [b"MM", b"nonsense", b"II*\0\xff\xff\xff\xff", b"II*\0\x08\0\0\0\x09\0"]


@pytest.mark.parametrize("body", DAMAGED)
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_damaged_exif_is_told(body: bytes, kind: str) -> None:
    image = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
    if kind == "PNG":
        content = raw_png([row.tobytes() for row in image], 32, 8, 0, (b"eXIf", body))
    else:
        content = png(image, format="JPEG")
        body = b"Exif\0\0" + body
        content = content[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + content[2:]
    read, note = decode_with_note(content, 32, "a")
    assert note == "exif"
    assert note in NOTES
    assert (read == decode(png(image, format=kind), 32, "a")).all()


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [3, 4])
def test_orientation_in_either_byte_order(order: str, kind: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
    value = struct.pack(f"{order}L", 3) if kind == 4 else struct.pack(f"{order}HH", 3, 0xFFFF)
    entries = struct.pack(f"{order}HHHL4sHHL", 2, 0x0100, 3, 1, bytes(4), 0x0112, kind, 1) + value
    body = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}L", 8) + entries
    content = raw_png([row.tobytes() for row in image], 32, 8, 0, (b"eXIf", body))
    assert (decode(content, 32, "a") == image[::-1, ::-1]).all()


def image_with_markers(share: float) -> np.ndarray:
    """12 bits as an image has them, and a share of pixels saturated at 16 bits."""
    values = np.random.default_rng(0).integers(500, 3500, (100, 100)).astype(np.uint16)
    values.reshape(-1)[: round(share * values.size)] = 65535
    return values


def test_percentiles_are_those_of_the_pixels() -> None:
    values = image_with_markers(0.008)
    low, high = (int(np.percentile(values, p, method="inverted_cdf")) for p in (1, 99))
    read, note = decode_with_note(png(values), 100, "a", value_range="percentile")
    assert (read == np.rint((np.clip(values, low, high) - float(low)) / (high - low) * 255)).all()
    assert 3400 < high < 3500
    assert note == ""


def test_percentile_leaves_a_range_where_one_value_is_nearly_everywhere() -> None:
    values = np.full((100, 100), 700, np.uint16)
    values[0, :50] = np.arange(50) + 1000
    assert (decode(png(values), 100, "a", value_range="percentile") == decode(png(values), 100, "a")).all()
    with pytest.raises(BadImage, match="is blank"):
        decode(png(np.full((32, 32), 7, np.uint16)), 32, "a", value_range="percentile")


def test_percentile_is_of_16_bits_alone() -> None:
    image = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
    assert (decode(png(image), 32, "a", value_range="percentile") == image).all()


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (image_with_markers(0.0001), True),
        (image_with_markers(0.0099), True),
        (image_with_markers(0.02), False),  # too many to be cut off
        (image_with_markers(0), False),
        (65535 - image_with_markers(0.005), True),  # at the dark end
        (np.where(image_with_markers(0.005) == 65535, 6000, image_with_markers(0)).astype(np.uint16), False),
    ],
)
def test_saturated_pixels_that_take_the_range_are_told_of(values: np.ndarray, told: bool) -> None:
    assert decode_with_note(png(values), 100, "a")[1] == ("saturated" if told else "")


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_inverted_image_is_padded_with_black(kind: type) -> None:
    image = np.random.default_rng(0).integers(100, 200, (64, 32)).astype(kind)
    plain, inverted = (decode(png(image), 64, "a", "pad", invert=invert) for invert in (False, True))
    assert (inverted[:, 16:48] == 255 - plain[:, 16:48]).all()
    assert not inverted[:, :16].any()
    assert not inverted[:, 48:].any()


def test_more_pixels_than_the_bytes_can_hold() -> None:
    content = bytearray(png(np.zeros((32, 32), np.uint8), format="JPEG"))
    struct.pack_into(">HH", content, content.index(b"\xff\xc0") + 5, 4096, 4096)
    with pytest.raises(BadImage, match=r"has too few bytes for its size \(4096 x 4096 pixels in \d+ bytes\)"):
        decode(bytes(content), 32, "Image x")


def test_pad_keeps_the_shape_of_the_image() -> None:
    image = np.random.default_rng(0).integers(100, 256, (64, 32), dtype=np.uint8)
    read = decode(png(image), 32, "a", "pad")
    assert np.abs(read[:, 8:24] - image.reshape(32, 2, 16, 2).mean((1, 3))).max() <= 1
    assert not read[:, :8].any()
    assert not read[:, 24:].any()


def test_crop_keeps_the_middle() -> None:
    image = np.random.default_rng(0).integers(0, 256, (32, 48), dtype=np.uint8)
    assert (decode(png(image), 32, "a", "crop") == image[:, 8:40]).all()


@pytest.mark.parametrize("fit", ["pad", "crop"])
def test_fit_of_a_16_bit_image(fit: str) -> None:
    image = np.random.default_rng(0).integers(1000, 3000, (64, 32)).astype(np.uint16)
    image[20, 20], image[20, 21] = 1000, 3000
    read = decode(png(image), 64 if fit == "pad" else 32, "a", fit)  # type: ignore[arg-type]
    exact = np.rint((image - 1000.0) * 255 / 2000)
    inner = read[:, 16:48] if fit == "pad" else read
    assert np.abs(inner - (exact if fit == "pad" else exact[16:48])).max() <= 1
    if fit == "pad":
        assert not read[:, :16].any()


def test_1_by_1_is_no_image() -> None:
    with pytest.raises(BadImage, match=r"is too small to be an image \(1 x 1 pixels\)"):
        decode(png(np.zeros((1, 1), np.uint8)), 32, "Image x")


@pytest.mark.parametrize("image", [np.full((32, 32), 7, np.uint8), np.full((32, 32), 700, np.uint16)])
def test_blank(image: np.ndarray) -> None:
    with pytest.raises(BadImage, match=r"is blank \(every pixel is 7(00)?\)"):
        decode(png(image), 32, "Image x")


def test_bad_image_survives_the_way_from_a_worker() -> None:
    error = pickle.loads(pickle.dumps(BadImage("Image x", "is blank", "every pixel is 7")))  # noqa: S301
    assert isinstance(error, BadImage)
    assert (str(error), error.reason) == (
        str(BadImage("Image x", "is blank", "every pixel is 7")),
        "is blank",
    )
