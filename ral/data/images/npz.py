"""Images in a NumPy archive (.npz), read in place: a member is streamed row by row, and nothing is unpickled."""

import io
import math
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

from ral.data.images.archives import naming_damage
from ral.data.images.limits import ANY_GROWTH, MOST_GROWTH, MOST_PIXELS
from ral.errors import UserError

# Most bytes of an array that is read at once. The labels of a million images take some 14 MB.
MOST_READ = 256 << 20


def array_shape(path: Path, member: str) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of an array, without reading it.

    Raises:
        UserError: the archive is damaged or has no such array.
    """
    with naming_damage(path), _opened(path) as archive, _member(archive, path, member) as stream:
        return _header(stream, archive, path, member)


def read_array(path: Path, member: str) -> np.ndarray:
    """A whole array of numbers (labels).

    Raises:
        UserError: the archive is damaged, has no such array, it is too large, or would have to be unpickled.
    """
    with naming_damage(path), _opened(path) as archive, _member(archive, path, member) as stream:
        shape, dtype = _header(stream, archive, path, member)
        size = math.prod(shape) * dtype.itemsize
        if size > MOST_READ:
            raise UserError(f"{path}: {member} has {size} bytes, too many for labels. Download it again.")
        content = stream.read(size)
        if len(content) < size:
            raise UserError(f"{path}: {member} is truncated. Download it again.")
        return np.frombuffer(content, dtype).reshape(shape)


def read_images(path: Path, wanted: Sequence[str]) -> Iterator[bytes]:
    """Yield images as PNG files.

    Args:
        path: the archive.
        wanted: places such as `train_images.npy[5]`; those of an array together, in ascending order.

    Raises:
        UserError: the archive is damaged, or an array holds no 8-bit gray images.
    """
    places: dict[str, list[int]] = {}
    for place in wanted:
        member, _, number = place.removesuffix("]").partition("[")
        places.setdefault(member, []).append(int(number))
    with naming_damage(path), _opened(path) as archive:
        for member, rows in places.items():
            with _member(archive, path, member) as stream:
                shape, dtype = _header(stream, archive, path, member)
                if len(shape) != 3 or dtype != np.uint8 or not 0 < shape[1] * shape[2] <= MOST_PIXELS:
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
                        # Stored, not compressed: it is decoded again at once.
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
            f"{path} has no array {member}; it holds {', '.join(archive.namelist())}. Download it again."
        ) from None


def _header(
    stream: IO[bytes], archive: zipfile.ZipFile, path: Path, member: str
) -> tuple[tuple[int, ...], np.dtype]:
    """Read the header of the .npy format, which leaves the stream at the first value.

    What it claims is held to the archive's own list, and that to the bytes which are there.
    """
    try:
        version = np.lib.format.read_magic(stream)
        read = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        shape, columns_first, dtype = read(stream)
    except (ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: {member} is no NumPy array ({error}). Download it again.") from None
    if dtype.hasobject or columns_first:
        raise UserError(f"{path}: {member} holds Python objects or is stored by columns. Download it again.")
    listed = archive.getinfo(member)
    packed = min(listed.compress_size, path.stat().st_size)
    claimed = stream.tell() + math.prod(shape) * dtype.itemsize
    if claimed != listed.file_size or claimed > max(ANY_GROWTH, MOST_GROWTH * packed):
        raise UserError(
            f"{path}: {member} claims {claimed} bytes, has {listed.file_size} by the archive's list and takes {packed}. "
            "Download it again."
        )
    return shape, dtype
