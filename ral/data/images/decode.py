"""Decodes image files to square grayscale images of fixed size."""

import io
import struct
import warnings
from typing import Literal

import numpy as np
from PIL import Image, UnidentifiedImageError

from ral.data.images import png
from ral.data.images.bad_image import BadImage, check_extent
from ral.data.images.histogram import histogram
from ral.data.images.limits import MAX_BYTES
from ral.data.images.resize import Fit, to_square

# Pillow would only warn; `check_extent` raises an error instead.
Image.MAX_IMAGE_PIXELS = None

# Reported by a note instead, which names the image.
warnings.filterwarnings("ignore", "Corrupt EXIF data", module="PIL")

# Maximum enlargement: beyond this factor an image would be a blur of a few pixels.
MAX_ENLARGEMENT = 8

Range = Literal["own", "percentile"]

# Pillow modes of up to 8 bits, and of 16 bits.
EIGHT_BIT = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")
SIXTEEN_BIT = "I;16"

# Remarks on usable images: name -> meaning and remedy.
NOTES = {
    "saturated": (
        "at most 1 % of the pixels at either end take more than half of the 16-bit range, so that the rest has little "
        "contrast. Set preprocess.range to percentile to cut them off."
    ),
    "polarity": (
        "Photometric Interpretation and Presentation LUT Shape contradict each other; the shape was followed. Look at "
        "one: air must be dark."
    ),
    "exif": "the EXIF data cannot be read; the image was taken as upright.",
}


def decode(
    content: bytes,
    size: int,
    name: str,
    fit: Fit = "stretch",
    value_range: Range = "own",
    invert: bool = False,
) -> np.ndarray:
    """Decode one image as `decode_with_note` does, without the note."""
    return decode_with_note(content, size, name, fit, value_range, invert)[0]


def decode_with_note(
    content: bytes,
    size: int,
    name: str,
    fit: Fit = "stretch",
    value_range: Range = "own",
    invert: bool = False,
) -> tuple[np.ndarray, str]:
    """Decode one image to uint8 [size, size], grayscale, resized by area averaging.

    8-bit images keep their values. Deeper ones (16-bit PNG, DICOM) are averaged at full depth and rounded to
    8 bits once, at the end. A 16-bit PNG does not specify its value range, so `value_range` determines it; a
    DICOM image has a window or lookup table (`ral.data.images.dicom`).

    Args:
        content: the image file: PNG, JPEG or DICOM.
        size: height and width wanted.
        name: the image and its location, for the error.
        fit: stretch the image to the square, pad its shorter side with black, or crop its longer side, both evenly.
        value_range: values of a 16-bit PNG that map to black and white: its minimum and maximum (own), or its 1st
            and 99th percentile.
        invert: high values of a PNG or JPEG are dark; DICOM images have a tag for it.

    Returns:
        The pixels, and keys of NOTES joined by commas, usually none.

    Raises:
        BadImage: the content is not an image, is truncated, or has an invalid size or invalid pixels.
        UserError: a DICOM image needs a package that is not installed.
    """
    if len(content) > MAX_BYTES:
        raise BadImage(name, "is too large to be an image", f"{len(content)} bytes")
    start = dicom_start(content)
    if start is not None:
        from ral.data.images.dicom import read_dicom

        values, note = read_dicom(content, start, name)
        return _square(values, 0, int(np.iinfo(values.dtype).max), size, name, fit), note
    values, note = _read_image(content, name)
    if values.dtype == np.uint8:
        return _square(values, 0, 255, size, name, fit, invert), note
    black, white, saturated = _sixteen_bit_range(values, value_range)
    if value_range == "percentile":
        values = np.clip(values, black, white)
    note = ",".join(key for key in (note, "saturated" if saturated else "") if key)
    return _square(values, black, white, size, name, fit, invert), note


def extent(content: bytes, name: str) -> tuple[int, int]:
    """Width and height of an image as `decode` sees it, in its EXIF orientation, without decoding its pixels.

    Raises:
        BadImage: the content is not an image.
    """
    start = dicom_start(content)
    if start is not None:
        from ral.data.images.dicom import read_header

        _, rows, columns = read_header(content, start, name)
        return columns, rows
    try:
        with Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as image:
            width, height = image.size
            orientation, _ = _orientation(image.info.get("exif", b""))
    except UnidentifiedImageError:
        raise BadImage(name, "is not an image", f"{len(content)} bytes") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise BadImage(name, "cannot be decoded", str(error)) from None
    return (height, width) if orientation >= 5 else (width, height)


def _sixteen_bit_range(values: np.ndarray, value_range: Range) -> tuple[int, int, bool]:
    """Black, white, and whether a few pixels take up most of the range between them.

    The percentiles are pixel values: the smallest values at or below which 1 % and 99 % of the pixels lie. If both are
    equal, minimum and maximum are used instead.
    """
    counts = histogram(values)
    used, below = np.flatnonzero(counts), counts.cumsum() * 100
    least, greatest = int(used[0]), int(used[-1])
    first, last = (int(np.searchsorted(below, values.size * percent)) for percent in (1, 99))
    if value_range == "percentile" and last > first:
        return first, last, False
    return least, greatest, value_range == "own" and 0 < 2 * (last - first) < greatest - least


def _square(
    values: np.ndarray, black: int, white: int, size: int, name: str, fit: Fit, invert: bool = False
) -> np.ndarray:
    height, width = values.shape
    if min(height, width) * MAX_ENLARGEMENT < size:
        raise BadImage(name, "is too small to be an image", f"{width} x {height} pixels")
    if black == white:
        raise BadImage(name, "is blank", f"every pixel is {black}")
    square = to_square(values, black, white, size, fit, invert)
    # A blank image stays blank when resized, and checking the small one is fast; padding hides blankness.
    if (fit == "pad" or square.min() == square.max()) and values.min() == values.max():
        raise BadImage(name, "is blank", f"every pixel is {values.flat[0]}")
    return square


def _read_image(content: bytes, name: str) -> tuple[np.ndarray, str]:
    """Pixels of a PNG or JPEG file in its EXIF orientation, uint8 or uint16 [height, width], and a note."""
    try:
        with Image.open(io.BytesIO(png.unpacked(content)), formats=("PNG", "JPEG")) as image:
            check_extent(image.width, image.height, name, len(content))
            deep = image.mode == SIXTEEN_BIT
            if not deep and image.mode not in EIGHT_BIT:
                raise BadImage(name, "has a kind of pixels that is not known", f"Pillow's mode {image.mode}")
            if image.format == "PNG" and content[24] == 16 and not deep:
                # Pillow would keep only the upper 8 bits, of which a 12-bit image uses four.
                raise BadImage(name, "has 16 bits with colour or transparency", "save it as 16-bit gray")
            # All at once: between two blocks, Pillow would wait for other threads.
            image.decodermaxblock = MAX_BYTES
            image.load()
            orientation, note = _orientation(image.info.get("exif", b""))
            # Drop transparency: `convert` would warn about palettes with it.
            image.info.pop("transparency", None)
            values = np.asarray(image if deep or image.mode == "L" else image.convert("L"))
    except UnidentifiedImageError:
        raise BadImage(name, "is not an image", f"{len(content)} bytes") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise BadImage(name, "cannot be decoded", str(error)) from None
    return _upright(values, orientation), note


def _orientation(exif: bytes) -> tuple[int, str]:
    """Orientation (1 to 8) from EXIF data, and a note."""
    exif = exif.removeprefix(b"Exif\0\0")
    if not any(exif):
        return 1, ""
    try:
        order = {b"II": "<", b"MM": ">"}[exif[:2]]
        (table,) = struct.unpack_from(f"{order}L", exif, 4)
        (entries,) = struct.unpack_from(f"{order}H", exif, table)
        for offset in range(table + 2, table + 2 + 12 * entries, 12):
            tag, kind, _, value = struct.unpack_from(f"{order}HHLL", exif, offset)
            if tag == 0x0112:
                # A two-byte number is in the first half of the four-byte field.
                value = value if kind == 4 else value & 0xFFFF if order == "<" else value >> 16
                return (value, "") if 1 <= value <= 8 else (1, "")
    except (KeyError, struct.error):
        return 1, "exif"
    return 1, ""


def _upright(values: np.ndarray, orientation: int) -> np.ndarray:
    """Apply the EXIF orientation: 5 to 8 transpose; then rows, columns or both may be mirrored."""
    if orientation >= 5:
        values = values.T
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    return np.ascontiguousarray(values)


_VALUE_REPRESENTATIONS = frozenset(
    b"AE AS AT CS DA DS DT FL FD IS LO LT OB OD OF OL OV OW PN SH SL SQ SS ST SV TM UC UI UL UN UR US UT UV".split()
)


def dicom_start(content: bytes) -> int | None:
    """Offset of the first element of a DICOM file; None if the content is not DICOM.

    It normally follows a preamble of 128 bytes and `DICM`, but some files lack one or both.
    """
    if content[128:132] == b"DICM":
        return 132
    if content[:4] == b"DICM":
        return 4
    if _begins_with_element(content):
        return 0
    return 128 if not any(content[:128]) and _begins_with_element(content[128:136]) else None


def _begins_with_element(content: bytes) -> bool:
    """Whether the first bytes are an element of group 2 or 8, as at the start of a DICOM file."""
    little = content[:2] in (b"\2\0", b"\10\0")
    if len(content) < 8 or not (little or content[:2] in (b"\0\2", b"\0\10")):
        return False
    # Without a value representation there is a four-byte length, and the first elements are short.
    return content[4:6] in _VALUE_REPRESENTATIONS or (little and content[6:8] == b"\0\0")
