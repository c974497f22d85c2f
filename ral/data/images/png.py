"""Unpacks the pixels of PNG files with ISA-L, in a third of the time that Pillow's zlib takes.

Pillow unpacks row by row, which is slow. Here all rows are unpacked at once and handed to Pillow as a PNG file that is
not compressed, so that Pillow does all the rest: filters, palettes, transparency, checks and errors.
"""

import struct
from itertools import pairwise

from ral.data.images.inflate import free_vector_registers, isal_zlib

SIGNATURE = b"\x89PNG\r\n\x1a\n"

# Samples per pixel of each colour type.
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}

# Pixels that unpack to more than this many times the file are left to Pillow, which is given them after a check.
MAX_EXPANSION = 64

# Bytes of a block that is not compressed.
BLOCK = 65535


def unpacked(content: bytes) -> bytes:
    """The same PNG file without compression; the content as it is if it is no PNG file or unusual in any way.

    Unusual are interlaced and animated files, and damaged ones, whose errors Pillow words.
    """
    if isal_zlib is None or not content.startswith(SIGNATURE):
        return content
    try:
        size = _unpacked_bytes(content)
        parts, first, last = _data_chunks(content)
        if not 0 < size <= MAX_EXPANSION * len(content):
            return content
        unpacker = isal_zlib.decompressobj()
        pixels = unpacker.decompress(parts[0] if len(parts) == 1 else b"".join(parts), size + 1)
    except (struct.error, KeyError, ValueError, isal_zlib.error):
        return content
    if len(pixels) != size or not unpacker.eof:
        return content
    stream = _stored(pixels)
    free_vector_registers()
    view, length = memoryview(content), struct.pack(">L", sum(map(len, stream)))
    # One copy of all: copying holds the interpreter's lock, for which other threads wait. Pillow does not look at the
    # checksum of this chunk, only at that of the stream in it.
    return b"".join((view[:first], length, b"IDAT", *stream, bytes(4), view[last:]))


def _unpacked_bytes(content: bytes) -> int:
    """Bytes of all rows with their filter bytes, from the header.

    Raises:
        ValueError: the file is interlaced, or does not begin with a header.
        struct.error: it is truncated.
        KeyError: the colour type is unknown.
    """
    kind, width, height, depth, colour, _, _, interlaced = struct.unpack_from(">4s2L5B", content, 12)
    if kind != b"IHDR" or interlaced:
        raise ValueError
    return int(height * ((width * depth * CHANNELS[colour] + 7) // 8 + 1))


def _data_chunks(content: bytes) -> tuple[list[memoryview], int, int]:
    """The contents of the IDAT chunks, and the offsets at which they begin and end.

    Raises:
        ValueError: the file is truncated or animated, or its IDAT chunks are not in a row.
        struct.error: it is truncated.
    """
    view, offset = memoryview(content), len(SIGNATURE)
    starts, parts = [], []
    kind = b""
    while kind != b"IEND":
        length, kind = struct.unpack_from(">L4s", content, offset)
        end = offset + 12 + length
        if end > len(content) or kind == b"acTL":
            raise ValueError
        if kind == b"IDAT":
            starts.append(offset)
            parts.append(view[offset + 8 : end - 4])
            last = end
        offset = end
    if not parts or any(
        b - a != len(part) + 12 for (a, b), part in zip(pairwise(starts), parts, strict=False)
    ):
        raise ValueError
    return parts, starts[0], last


def _stored(pixels: bytes) -> list[bytes | memoryview]:
    """The parts of a zlib stream that is not compressed."""
    view = memoryview(pixels)
    parts: list[bytes | memoryview] = [b"\x78\x01"]
    for start in range(0, len(pixels), BLOCK):
        block = view[start : start + BLOCK]
        final = start + BLOCK >= len(pixels)
        parts += [struct.pack("<BHH", final, len(block), len(block) ^ 0xFFFF), block]
    return [*parts, struct.pack(">L", isal_zlib.adler32(pixels))]
