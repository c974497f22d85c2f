"""Images made to take memory: each is refused by what it claims, in little memory, and large honest ones are read."""

import io
import json
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from dicom_files import NAME, RAMP, compress, dicom, with_pixels
from PIL import Image

from ral.data.images.bad_image import BadImage
from ral.data.images.decode import decode
from ral.data.images.limits import MAX_BYTES, MAX_PIXELS

MIB = 1 << 20
SIDE = int(MAX_PIXELS**0.5)

# Decodes a file and prints how it ends and the most memory that the process ever had, in MiB.
SCRIPT = """
import json, sys
from pathlib import Path
from ral.data.images.bad_image import BadImage
from ral.data.images.decode import decode

try:
    end = str(decode(Path(sys.argv[1]).read_bytes(), 64, "Image x").shape)
except BadImage as error:
    end = error.reason
(most,) = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(json.dumps([end, int(most) >> 10]))
"""


def zeros(size: int, wbits: int = 15) -> bytes:
    """Megabytes of zeros that deflate to a thousandth: one megabyte packed, over and over."""
    packer = zlib.compressobj(9, zlib.DEFLATED, wbits)
    count = -(-size // MIB)
    first = packer.compress(bytes(MIB)) + packer.flush(zlib.Z_FULL_FLUSH)
    again = packer.compress(bytes(MIB)) + packer.flush(zlib.Z_FULL_FLUSH)
    end = b"\3\0" if wbits < 0 else b"\3\0" + struct.pack(">HH", count * MIB % 65521, 1)  # with its checksum
    return first + again * (count - 1) + end


def png(width: int, height: int, depth: int, colour: int, data: bytes, chunks: Iterable = ()) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">L", len(body)) + kind + body + struct.pack(">L", zlib.crc32(kind + body))

    header = struct.pack(">LLBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", data), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def jpeg(width: int, height: int) -> bytes:
    stream = io.BytesIO()
    Image.new("L", (64, 64), 100).save(stream, "JPEG")
    content = bytearray(stream.getvalue())
    struct.pack_into(">HH", content, content.index(b"\xff\xc0") + 5, height, width)
    return bytes(content)


def deflated(body: bytes) -> bytes:
    return bytes(128) + b"DICM\2\0\x10\0UI\x16\x001.2.840.10008.1.2.1.99" + body


def jpeg_2000(width: int, height: int, samples: int = 1) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(RAMP.astype(np.uint8)).save(stream, "JPEG2000", no_jp2=True)
    code = bytearray(stream.getvalue())
    struct.pack_into(">LL", code, 8, width, height)
    struct.pack_into(">H", code, 40, samples)
    return bytes(code)


def claiming(syntax: str, marker: bytes) -> bytes:
    """A DICOM file of 64 x 64 pixels whose JPEG stream claims 60,000 x 60,000."""
    with tempfile.TemporaryDirectory() as folder:
        content = bytearray(compress(dicom(), syntax, Path(folder)))
    struct.pack_into(">HH", content, content.rindex(marker) + 5, 60000, 60000)
    return bytes(content)


MEGABYTE = zlib.compress(bytes(1_000_000), 9)
SMALL = zlib.compress(bytes(33 * 32))
RUNS = struct.pack("<16L", 2, 64, 64 + 10 * MIB, *[0] * 13) + b"\x81\0" * (10 * MIB)
OTHER = "has another number of pixels than it says"

HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "PNG of a terabyte": (lambda: png(10**6, 10**6, 8, 0, bytes(150)), "is too large to be an image"),
    "PNG of one endless row": (lambda: png(2**31 - 1, 1, 16, 0, SMALL), "is too large to be an image"),
    "PNG without its pixels": (lambda: png(SIDE, SIDE, 16, 0, SMALL), "has too few bytes for its size"),
    "PNG of zeros": (lambda: png(SIDE, SIDE, 16, 0, zeros(SIDE * (2 * SIDE + 1))), "is blank"),
    "PNG of transparent zeros": (lambda: png(SIDE, SIDE, 8, 6, zeros(SIDE * (4 * SIDE + 1))), "is blank"),
    "PNG with text": (
        lambda: png(32, 32, 8, 0, SMALL, [(b"zTXt", b"a\0\0" + zeros(1024 * MIB))]), "cannot be decoded",
    ),
    "PNG with many texts": (
        lambda: png(32, 32, 8, 0, SMALL, [(b"zTXt", b"a%d\0\0" % n + MEGABYTE) for n in range(1000)]), "cannot be decoded",
    ),
    "PNG with international text": (
        lambda: png(32, 32, 8, 0, SMALL, [(b"iTXt", b"a\0\1\0\0\0" + zeros(1024 * MIB))]), "cannot be decoded",
    ),
    "PNG with a colour profile": (
        lambda: png(32, 32, 8, 0, SMALL, [(b"iCCP", b"a\0\0" + zeros(1024 * MIB))]), "cannot be decoded",
    ),
    "JPEG of 4 gigapixels": (lambda: jpeg(65535, 65535), "is too large to be an image"),
    "JPEG without its pixels": (lambda: jpeg(SIDE, SIDE), "has too few bytes for its size"),
    "zeros": (lambda: bytes(37 * MIB), "is not an image"),
    "file too large": (lambda: dicom() + bytes(MAX_BYTES), "is too large to be an image"),
    "deflated DICOM": (lambda: deflated(zeros(2048 * MIB, -15)), "is too large to be an image"),
    "DICOM of 4 gigapixels": (lambda: dicom(Rows=65535, Columns=65535), "is too large to be an image"),
    "DICOM with fewer pixels": (lambda: dicom(Rows=SIDE, Columns=SIDE), OTHER),
    "DICOM with more pixels": (lambda: dicom(PixelData=bytes(200 * MIB)), OTHER),
    "DICOM with frames not told": (lambda: dicom(PixelData=bytes(4 * 8192)), OTHER),
    "RLE that unpacks to a gigabyte": (lambda: with_pixels(RUNS, "1.2.840.10008.1.2.5"), OTHER),
    "JPEG 2000 that claims more": (lambda: with_pixels(jpeg_2000(60000, 60000), "1.2.840.10008.1.2.4.90"), OTHER),
    "JPEG 2000 of many channels": (lambda: with_pixels(jpeg_2000(64, 64, 16384), "1.2.840.10008.1.2.4.90"), OTHER),
    "JPEG 2000 without its pixels": (
        lambda: with_pixels(jpeg_2000(SIDE, SIDE), "1.2.840.10008.1.2.4.90", Rows=SIDE, Columns=SIDE),
        "has too few bytes for its size",
    ),
    "JPEG-LS that claims more": (lambda: claiming("JPEGLSLossless", b"\xff\xf7"), OTHER),
    "JPEG lossless that claims more": (lambda: claiming("JPEGLosslessProcess14_1", b"\xff\xc3"), OTHER),
}  # fmt: skip


def run(content: bytes, folder: Path) -> tuple[str, int]:
    path = folder / "image"
    path.write_bytes(content)
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    end, most = json.loads(done.stdout)
    return end, most


@pytest.mark.skipif(sys.platform != "linux", reason="the memory is read from /proc")
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_image_takes_little_memory(name: str, tmp_path: Path) -> None:
    make, reason = HOSTILE[name]
    end, most = run(make(), tmp_path)
    assert end == reason
    assert most < 700


@pytest.mark.skipif(sys.platform != "linux", reason="the memory is read from /proc")
@pytest.mark.parametrize("kind", ["PNG", "DICOM"])
def test_largest_image_is_read(kind: str, tmp_path: Path) -> None:
    values = np.tile(RAMP, (SIDE // 64, SIDE // 64))
    stream = io.BytesIO()
    if kind == "PNG":
        Image.fromarray(values).save(stream, "PNG", compress_level=0)
    end, most = run(stream.getvalue() or dicom(values), tmp_path)
    assert end == "(64, 64)"
    assert most < 1024


def test_deflated_dicom_is_read() -> None:
    body = dicom()[132:]
    start = body.index(b"\x08\x00\x16\x00")
    packer = zlib.compressobj(wbits=-15)
    content = deflated(packer.compress(body[start:]) + packer.flush())
    assert (decode(content, 64, NAME) == decode(dicom(), 64, NAME)).all()
    with pytest.raises(BadImage, match="its deflated part is cut short"):
        decode(content[:-100], 64, NAME)


def test_deflated_dicom_is_not_inflated_behind_the_back() -> None:
    """A meta group that is written without value representations: pydicom may understand it."""
    body = zeros(2 * MIB, -15)
    content = bytes(128) + b"DICM\2\0\x10\0\x16\0\0\x001.2.840.10008.1.2.1.99" + body
    with pytest.raises(BadImage, match="cannot be decoded"):
        decode(content, 64, NAME)
