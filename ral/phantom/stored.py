"""Writes PNG and gzip without compression, because the output of a compressor depends on its version and build."""

import struct
import zlib
from types import TracebackType
from typing import IO

import numpy as np
from numpy.typing import NDArray

# Maximum bytes in a stored block.
_BLOCK = 65535

# An empty stored block with the flag of the last block.
_END = b"\x01\x00\x00\xff\xff"

# Header without file name, time, compression level and operating system.
_GZIP_HEAD = bytes([0x1F, 0x8B, 8, 0, 0, 0, 0, 0, 0, 255])


def png(gray: NDArray[np.uint8]) -> bytes:
    """Encode an 8-bit grayscale image, [height, width], as PNG."""
    height, width = gray.shape
    rows = np.zeros((height, 1 + width), np.uint8)  # each row begins with filter type 0 (none)
    rows[:, 1:] = gray
    content = rows.tobytes()
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            _chunk(b"IHDR", struct.pack(">2I5B", width, height, 8, 0, 0, 0, 0)),
            _chunk(b"IDAT", b"\x78\x01" + _stored(content) + _END + struct.pack(">I", zlib.adler32(content))),
            _chunk(b"IEND", b""),
        )
    )


class Gzip:
    """A context manager that writes a gzip file to `stream`."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self._crc, self._size = stream, 0, 0

    def __enter__(self) -> "Gzip":
        self._stream.write(_GZIP_HEAD)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._stream.write(_END + struct.pack("<2I", self._crc, self._size & 0xFFFFFFFF))

    def write(self, content: bytes) -> None:
        """Append to the content of the file."""
        self._crc = zlib.crc32(content, self._crc)
        self._size += len(content)
        self._stream.write(_stored(content))


def _stored(content: bytes) -> bytes:
    """Content as stored blocks of deflate, without the last block."""
    blocks = []
    for start in range(0, len(content), _BLOCK):
        block = content[start : start + _BLOCK]
        blocks += [struct.pack("<B2H", 0, len(block), len(block) ^ 0xFFFF), block]
    return b"".join(blocks)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
