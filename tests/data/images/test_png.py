"""PNG files unpacked by ISA-L: the same pixels, and the same errors, as Pillow alone gives."""

import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from ral.data.images import png
from ral.data.images.bad_image import BadImage
from ral.data.images.decode import decode_with_note

pytest.importorskip("isal", reason="needs the extra `data`")

SIDES = (37, 64)


def image(mode: str) -> Image.Image:
    """Random shades, which compress little."""
    rng = np.random.default_rng(0)
    if mode == "I;16":
        return Image.fromarray(rng.integers(0, 65536, SIDES, np.uint16))
    channels = {"L": 1, "1": 1, "P": 1, "LA": 2, "RGB": 3, "RGBA": 4}[mode]
    noisy = rng.integers(0, 256, (*SIDES, channels), np.uint8)
    base = Image.fromarray(noisy[..., 0] if channels == 1 else noisy, mode if channels > 1 else "L")
    return base.convert(mode) if channels == 1 else base


def encode(mode: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image(mode).save(stream, "PNG", **options)
    return stream.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">L", len(content)) + kind + content + struct.pack(">L", zlib.crc32(kind + content))


def written(rows: bytes, pieces: int = 1, header: tuple[int, ...] = (37, 64, 8, 0, 0, 0, 0)) -> bytes:
    """A PNG file of filtered rows, in several IDAT chunks."""
    stream = zlib.compress(rows)
    step = -(-len(stream) // pieces)
    parts = [chunk(b"IDAT", stream[start : start + step]) for start in range(0, len(stream), step)]
    return b"".join(
        (png.SIGNATURE, chunk(b"IHDR", struct.pack(">2L5B", *header)), *parts, chunk(b"IEND", b""))
    )


def filtered(kind: int, width: int = 37, height: int = 64) -> bytes:
    """Random rows of one filter type."""
    rng = np.random.default_rng(kind)
    return b"".join(bytes([kind]) + rng.bytes(width) for _ in range(height))


def outcomes(content: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """Pixels and note, or the error, with ISA-L and without."""
    for library in (png.isal_zlib, None):
        with monkeypatch.context() as patch:
            patch.setattr(png, "isal_zlib", library)
            try:
                pixels, note = decode_with_note(content, 16, "x")
                yield pixels.tobytes(), note
            except BadImage as error:
                yield str(error)


GOOD = {
    **{mode: encode(mode) for mode in ("L", "1", "P", "LA", "RGB", "RGBA", "I;16")},
    "2 bits": encode("P", bits=2),
    "4 bits": encode("P", bits=4),
    "transparent palette": encode("P", transparency=3),
    "not compressed": encode("L", compress_level=0),
    **{f"filter {kind}": written(filtered(kind)) for kind in range(5)},
    "many chunks": written(filtered(4), pieces=9),
    "chunk after the pixels": written(filtered(1)).replace(chunk(b"IEND", b""), b"")
    + chunk(b"tEXt", b"Comment\0late")
    + chunk(b"IEND", b""),
    "bytes after the end": encode("L") + b"rest",
}


@pytest.mark.parametrize("name", GOOD)
def test_every_kind_has_the_same_pixels(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    content = GOOD[name]
    assert png.unpacked(content) is not content
    unpacked = np.asarray(Image.open(io.BytesIO(png.unpacked(content))))
    assert np.array_equal(unpacked, np.asarray(Image.open(io.BytesIO(content))))
    ours, pillow = outcomes(content, monkeypatch)
    assert ours == pillow
    assert isinstance(ours, tuple)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        png.SIGNATURE,
        b"\xff\xd8\xff no PNG",
        written(filtered(0), header=(37, 64, 8, 0, 0, 0, 1)),  # interlaced
        written(filtered(0), header=(37, 64, 8, 5, 0, 0, 0)),  # no such colour
        written(filtered(0), header=(0, 64, 8, 0, 0, 0, 0)),
        written(filtered(0)[:-5]),  # a row is too short
        written(filtered(0) + b"more"),
        written(bytes(2_000_000), header=(1999, 1000, 8, 0, 0, 0, 0)),  # unpacks to 1,000 times its size
        encode("L").replace(b"IDAT", b"IDAX", 1),
    ],
)
def test_unusual_files_are_left_to_pillow(content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    assert png.unpacked(content) is content
    ours, pillow = outcomes(content, monkeypatch)
    assert ours == pillow


@pytest.mark.parametrize("name", ["L", "P", "I;16", "many chunks"])
def test_damage_has_the_same_outcome(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    content, rng = GOOD[name], np.random.default_rng(0)
    for _ in range(200):
        damaged = bytearray(content)
        position = int(rng.integers(len(content)))
        damaged[position] ^= 1 << int(rng.integers(8))
        for variant in (bytes(damaged), content[:position]):
            ours, pillow = outcomes(variant, monkeypatch)
            assert ours == pillow, position
