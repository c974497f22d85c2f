"""From the bytes of a film to a square grayscale image of fixed size."""

import io
import struct
import warnings
from typing import Literal

import numpy as np
from PIL import Image, UnidentifiedImageError

from ral.data.limits import MOST_BYTES, MOST_PIXELS
from ral.data.resize import Fit, to_square
from ral.errors import UserError

# Pixels of an image for each byte of its file. PNG of 8 or 16 bits cannot reach 1,033 and JPEG not 513, even if blank: more
# is a claim, and some decoders fill in what is missing.
MOST_PIXELS_PER_BYTE = 2048
# Pillow would only warn, so its own limit is off.
Image.MAX_IMAGE_PIXELS = None

# It is told by a note that names the film.
warnings.filterwarnings("ignore", "Corrupt EXIF data", module="PIL")

# A film is enlarged by this at most: a larger factor would train on a smear of a few pixels.
MOST_ENLARGED = 8

Range = Literal["own", "percentile"]

# Pillow's modes of 8 bits and less, and that of 16 bits.
EIGHT_BIT = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")
SIXTEEN_BIT = "I;16"

# Pixels that a histogram counts at a time: numpy widens them to eight bytes.
COUNTED = 1 << 18

# What may be said of an image that is used all the same: a word -> what it means and what to do.
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

_REMEDY = (
    "Replace the film, take its row out of the label table, or set preprocess.on_bad_film to quarantine to go on "
    "without it."
)


class BadFilm(UserError):
    """A film whose pixels cannot be had or are worth nothing; its label must not be trained on.

    Args:
        name: which film, and where it is.
        reason: what is wrong, the same words for every film with that fault; quarantine.parquet counts by it.
        detail: what was found in this one.
    """

    def __init__(self, name: str, reason: str, detail: str = "") -> None:
        super().__init__(f"{name} {reason}{f' ({detail})' if detail else ''}. {_REMEDY}")
        self.name, self.reason, self.detail = name, reason, detail

    def __reduce__(self) -> tuple[type["BadFilm"], tuple[str, str, str]]:
        return type(self), (self.name, self.reason, self.detail)  # it travels between processes


def decode(
    content: bytes,
    size: int,
    name: str,
    fit: Fit = "stretch",
    value_range: Range = "own",
    invert: bool = False,
) -> np.ndarray:
    """The pixels of `decode_noted` alone."""
    return decode_noted(content, size, name, fit, value_range, invert)[0]


def decode_noted(
    content: bytes,
    size: int,
    name: str,
    fit: Fit = "stretch",
    value_range: Range = "own",
    invert: bool = False,
) -> tuple[np.ndarray, str]:
    """Decode one film to uint8 [size, size], grayscale, resized by area averaging.

    Films of 8 bits keep their values. Deeper ones (16-bit PNG, DICOM) are averaged at full depth and rounded to 8
    bits once, at the end. A 16-bit PNG says nothing of the range that it uses, so `value_range` decides; of a DICOM
    film, its window or lookup table does (`ral.data.dicom`).

    Args:
        content: the film file: PNG, JPEG or DICOM.
        size: height and width wanted.
        name: where the film comes from, for the error.
        fit: stretch the film to the square, pad its shorter side with black, or crop its longer side, both evenly.
        value_range: what of a 16-bit PNG is black and white: its least and greatest value (own), or its 1st and
            99th percentile.
        invert: high values of a PNG or JPEG are dark; a DICOM film says so itself.

    Returns:
        The pixels, and words of NOTES joined by commas, mostly none.

    Raises:
        BadFilm: the content is no film, is cut short, or its size or pixels are not those of a film.
        UserError: a DICOM film needs a package that is not installed.
    """
    if len(content) > MOST_BYTES:
        raise BadFilm(name, "is too large to be a film", f"{len(content)} bytes")
    start = dicom_start(content)
    if start is not None:
        from ral.data.dicom import read_dicom

        values, note = read_dicom(content, start, name)
        return _square(values, 0, int(np.iinfo(values.dtype).max), size, name, fit), note
    values, note = _read_image(content, name)
    if values.dtype == np.uint8:
        return _square(values, 0, 255, size, name, fit, invert), note
    black, white, saturated = _sixteen_bit_range(values, value_range)
    if value_range == "percentile":
        values = np.clip(values, black, white)
    note = ",".join(word for word in (note, "saturated" if saturated else "") if word)
    return _square(values, black, white, size, name, fit, invert), note


def check_extent(width: int, height: int, name: str, packed: int | None = None) -> None:
    """Refuse a film that claims more pixels than any film has, before memory is taken for them.

    Args:
        width: in pixels.
        height: in pixels.
        name: where the film comes from, for the error.
        packed: bytes of the compressed pixels; None where they are not compressed.

    Raises:
        BadFilm: it does, or claims more than its bytes can hold.
    """
    if width * height > MOST_PIXELS:
        raise BadFilm(name, "is too large to be a film", f"{width} x {height} pixels")
    if packed is not None and width * height > MOST_PIXELS_PER_BYTE * packed:
        raise BadFilm(name, "has too few bytes for its size", f"{width} x {height} pixels in {packed} bytes")


def histogram(values: np.ndarray) -> np.ndarray:
    """How often each value occurs in an array of uint8 or uint16, int64 [256 or 65536]."""
    flat, counts = values.reshape(-1), np.zeros(np.iinfo(values.dtype).max + 1, np.int64)
    for start in range(0, len(flat), COUNTED):
        counts += np.bincount(flat[start : start + COUNTED], minlength=len(counts))
    return counts


def _sixteen_bit_range(values: np.ndarray, value_range: Range) -> tuple[int, int, bool]:
    """Black, white, and whether a few pixels take most of the range between them.

    The percentiles are values of pixels: the least at or below which are 1 % and 99 % of them. Where both are the
    same value, they leave no range, and the image's own is taken.
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
    if min(height, width) * MOST_ENLARGED < size:
        raise BadFilm(name, "is too small to be a film", f"{width} x {height} pixels")
    if black == white:
        raise BadFilm(name, "is blank", f"every pixel is {black}")
    square = to_square(values, black, white, size, fit, invert)
    # A blank film stays blank when it is resized, and the small one is looked through in no time; not so if padded.
    if (fit == "pad" or square.min() == square.max()) and values.min() == values.max():
        raise BadFilm(name, "is blank", f"every pixel is {values.flat[0]}")
    return square


def _read_image(content: bytes, name: str) -> tuple[np.ndarray, str]:
    """Pixels of a PNG or JPEG file as its EXIF orientation says, uint8 or uint16 [height, width], and a note."""
    try:
        with Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as image:
            check_extent(image.width, image.height, name, len(content))
            deep = image.mode == SIXTEEN_BIT
            if not deep and image.mode not in EIGHT_BIT:
                raise BadFilm(name, "has a kind of pixels that is not known", f"Pillow's mode {image.mode}")
            if image.format == "PNG" and content[24] == 16 and not deep:
                # Pillow would keep the upper 8 bits alone, of which a 12-bit film uses four.
                raise BadFilm(name, "has 16 bits with colour or transparency", "save it as 16-bit gray")
            image.load()
            orientation, note = _orientation(image.info.get("exif", b""))
            # Transparency is dropped: `convert` would make such a palette warn.
            image.info.pop("transparency", None)
            values = np.asarray(image if deep or image.mode == "L" else image.convert("L"))
    except UnidentifiedImageError:
        raise BadFilm(name, "is not an image", f"{len(content)} bytes") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise BadFilm(name, "cannot be decoded", str(error)) from None
    return _upright(values, orientation), note


def _orientation(exif: bytes) -> tuple[int, str]:
    """The orientation 1 to 8 in EXIF data, and a note."""
    exif = exif.removeprefix(b"Exif\0\0")
    if not any(exif):
        return 1, ""
    try:
        order = {b"II": "<", b"MM": ">"}[exif[:2]]
        (table,) = struct.unpack_from(f"{order}L", exif, 4)
        (entries,) = struct.unpack_from(f"{order}H", exif, table)
        for at in range(table + 2, table + 2 + 12 * entries, 12):
            tag, kind, _, value = struct.unpack_from(f"{order}HHLL", exif, at)
            if tag == 0x0112:
                # A number of two bytes stands in the first half of its four.
                value = value if kind == 4 else value & 0xFFFF if order == "<" else value >> 16
                return (value, "") if 1 <= value <= 8 else (1, "")
    except (KeyError, struct.error):
        return 1, "exif"
    return 1, ""


def _upright(values: np.ndarray, orientation: int) -> np.ndarray:
    """Undo a camera's rotation: orientations 5 to 8 have rows and columns exchanged, then two bits say which are mirrored."""
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
    """Where the first element of a DICOM file is; None if it is none.

    It is behind 128 bytes and DICM, but some files lack the 128 bytes, DICM, or both.
    """
    if content[128:132] == b"DICM":
        return 132
    if content[:4] == b"DICM":
        return 4
    if _begins_with_element(content):
        return 0
    return 128 if not any(content[:128]) and _begins_with_element(content[128:136]) else None


def _begins_with_element(content: bytes) -> bool:
    """Whether the first bytes are an element of group 2 or 8, with which DICOM files begin."""
    little = content[:2] in (b"\2\0", b"\10\0")
    if len(content) < 8 or not (little or content[:2] in (b"\0\2", b"\0\10")):
        return False
    # Without a value representation there is a length of four bytes, and the first elements are short.
    return content[4:6] in _VALUE_REPRESENTATIONS or (little and content[6:8] == b"\0\0")
