"""Streams images from a NumPy archive (.npz) row by row, without unpickling."""

import io
import math
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

from ral.data.images.archives import explain_damage
from ral.data.images.limits import EXPANSION_CHECK_BYTES, MAX_EXPANSION, MAX_PIXELS
from ral.errors import UserError

# Limit of an array that is read at once. The labels of a million images take about 14 MB.
MAX_ARRAY_BYTES = 256 << 20


def array_shape(path: Path, member: str) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of an array, without reading its values.

    Raises:
        UserError: the archive is damaged or has no such array.
    """
    with explain_damage(path), _opened(path) as archive, _member(archive, path, member) as stream:
        return _header(stream, archive, path, member)


def read_array(path: Path, member: str) -> np.ndarray:
    """Read a whole array of numbers (labels).

    Raises:
        UserError: the archive is damaged or has no such array, or the array is too large or would need unpickling.
    """
    with explain_damage(path), _opened(path) as archive, _member(archive, path, member) as stream:
        shape, dtype = _header(stream, archive, path, member)
        size = math.prod(shape) * dtype.itemsize
        if size > MAX_ARRAY_BYTES:
            raise UserError(f"{path}: {member} has {size} bytes, too many for labels. Download it again.")
        content = stream.read(size)
        if len(content) < size:
            raise UserError(f"{path}: {member} is truncated. Download it again.")
        return np.frombuffer(content, dtype).reshape(shape)


def read_images(path: Path, wanted: Sequence[str]) -> Iterator[bytes]:
    """Yield images as PNG files.

    Args:
        path: the archive.
        wanted: elements such as `train_images.npy[5]`; grouped by array, in ascending order.

    Raises:
        UserError: the archive is damaged, or an array does not contain 8-bit gray images.
    """
    rows_by_member: dict[str, list[int]] = {}
    for element in wanted:
        member, _, number = element.removesuffix("]").partition("[")
        rows_by_member.setdefault(member, []).append(int(number))
    with explain_damage(path), _opened(path) as archive:
        for member, rows in rows_by_member.items():
            with _member(archive, path, member) as stream:
                shape, dtype = _header(stream, archive, path, member)
                if len(shape) != 3 or dtype != np.uint8 or not 0 < shape[1] * shape[2] <= MAX_PIXELS:
                    raise UserError(
                        f"{path}: {member} has shape {shape} and type {dtype}, not 8-bit gray images."
                    )
                chosen = set(rows)
                for row in range(max(rows) + 1):
                    pixels = stream.read(shape[1] * shape[2])
                    if len(pixels) < shape[1] * shape[2]:
                        raise UserError(f"{path}: {member} is truncated. Download it again.")
                    if row in chosen:
                        image = io.BytesIO()
                        # Not compressed, because it is decoded again at once.
                        Image.frombytes("L", shape[2:0:-1], pixels).save(image, "PNG", compress_level=0)
                        yield image.getvalue()


def _opened(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except zipfile.BadZipFile:
        raise UserError(f"{path} is truncated or damaged. Download it again.") from None


def _member(archive: zipfile.ZipFile, path: Path, member: str) -> IO[bytes]:
    try:
        return archive.open(member)
    except KeyError:
        raise UserError(
            f"{path} has no array {member}; it contains {', '.join(archive.namelist())}. Download it again."
        ) from None


def _header(
    stream: IO[bytes], archive: zipfile.ZipFile, path: Path, member: str
) -> tuple[tuple[int, ...], np.dtype]:
    """Read the .npy header, leaving the stream at the first value.

    The claimed size is checked against the directory of the archive, and that against the size of the file.
    """
    try:
        version = np.lib.format.read_magic(stream)
        read = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        shape, columns_first, dtype = read(stream)
    except (ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: {member} is not a NumPy array ({error}). Download it again.") from None
    if dtype.hasobject or columns_first:
        raise UserError(
            f"{path}: {member} contains Python objects or is in column-major order. Download it again."
        )
    listed = archive.getinfo(member)
    packed = min(listed.compress_size, path.stat().st_size)
    claimed = stream.tell() + math.prod(shape) * dtype.itemsize
    if claimed != listed.file_size or claimed > max(EXPANSION_CHECK_BYTES, MAX_EXPANSION * packed):
        raise UserError(
            f"{path}: {member} claims {claimed} bytes, has {listed.file_size} according to the archive and "
            f"{packed} compressed. "
            "Download it again."
        )
    return shape, dtype
