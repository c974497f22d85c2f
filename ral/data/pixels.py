"""From the bytes of a film to a square grayscale image of fixed size."""

import io
from typing import Literal

import numpy as np
from PIL import Image, UnidentifiedImageError

from ral.errors import UserError

# A film is never near this (a 4k × 4k one has 16.8 M). Pillow would only warn, so its own limit is off.
MOST_PIXELS = 100_000_000
Image.MAX_IMAGE_PIXELS = None

# A film is enlarged by this at most: a larger factor would train on a smear of a few pixels.
MOST_ENLARGED = 8

Fit = Literal["stretch", "pad", "crop"]

# Pillow's modes of 8 bits and less, and those of 16 bits.
EIGHT_BIT = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")
SIXTEEN_BIT = ("I;16", "I;16B", "I;16L", "I;16N", "I")

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


def decode(content: bytes, size: int, name: str, fit: Fit = "stretch") -> np.ndarray:
    """Decode one film to uint8 [size, size], grayscale, resized by area averaging.

    Films of 8 bits keep their values. Deeper ones (16-bit PNG, DICOM) are averaged at full depth and rounded to 8
    bits once, at the end. A 16-bit PNG says nothing of the range that it uses, so that its own darkest pixel becomes
    0 and its brightest 255; of a DICOM film, its window or lookup table decides (`ral.data.dicom`).

    Args:
        content: the film file: PNG, JPEG or DICOM.
        size: height and width wanted.
        name: where the film comes from, for the error.
        fit: stretch the film to the square, pad its shorter side with black, or crop its longer side, both evenly.

    Raises:
        BadFilm: the content is no film, is cut short, or its size or pixels are not those of a film.
        UserError: a DICOM film needs a package that is not installed.
    """
    if content[128:132] == b"DICM":
        from ral.data.dicom import read_dicom

        shown, black, white = read_dicom(content, name)
        return _to_bytes(Image.fromarray(shown), black, white, size, name, fit)
    try:
        with Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as image:
            check_extent(image.width, image.height, name)
            if image.mode in SIXTEEN_BIT:
                values = np.asarray(image).astype(np.float32)
                black, white = float(values.min()), float(values.max())
                return _to_bytes(Image.fromarray(values), black, white, size, name, fit)
            if image.mode not in EIGHT_BIT:
                raise BadFilm(name, "has a kind of pixels that is not known", f"Pillow's mode {image.mode}")
            if image.mode == "L":
                image.load()  # `convert` would copy it
                gray: Image.Image = image
            else:
                gray = image.convert("L")
    except UnidentifiedImageError:
        raise BadFilm(name, "is not an image", f"{len(content)} bytes") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise BadFilm(name, "cannot be decoded", str(error)) from None
    return np.asarray(_resize_checked(gray, size, name, fit))


def check_extent(width: int, height: int, name: str) -> None:
    """Refuse a film that claims more pixels than any film has, before memory is taken for them.

    Raises:
        BadFilm: it does.
    """
    if width * height > MOST_PIXELS:
        raise BadFilm(name, "is too large to be a film", f"{width} x {height} pixels")


def _resize_checked(image: Image.Image, size: int, name: str, fit: Fit) -> Image.Image:
    if min(image.size) * MOST_ENLARGED < size:
        raise BadFilm(name, "is too small to be a film", f"{image.width} x {image.height} pixels")
    resized = _resize(image, size, fit)
    # A blank film stays blank when it is resized, and the small one is looked through in no time; not so if padded.
    if fit == "pad" or _blank(resized):
        low, high = _range(image)
        if low == high:
            raise BadFilm(name, "is blank", f"every pixel is {low:g}")
    return resized


def _blank(image: Image.Image) -> bool:
    low, high = _range(image)
    return high - low <= 1e-6 * abs(high)  # averages of equal floats differ in their last digits


def _range(image: Image.Image) -> tuple[float, float]:
    low, high = image.getextrema()
    assert isinstance(low, int | float)
    assert isinstance(high, int | float)
    return low, high


def _to_bytes(image: Image.Image, low: float, high: float, size: int, name: str, fit: Fit) -> np.ndarray:
    """Resize a film of mode F, then map [low, high] to [0, 255]; what is outside is cut off."""
    if fit == "pad" and high > low:  # so that the padding is black whatever the film's range
        image = Image.fromarray(np.asarray(image) - np.float32(low))
        low, high = 0.0, high - low
    values = np.asarray(_resize_checked(image, size, name, fit))
    return np.rint(np.clip((values - low) * (255 / (high - low)), 0, 255)).astype(np.uint8)


def _resize(image: Image.Image, size: int, fit: Fit) -> Image.Image:
    width, height = image.size
    if fit == "crop" and width != height:
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        return image.resize((size, size), Image.Resampling.BOX, box=(left, top, left + side, top + side))
    if fit == "pad" and width != height:
        scale = size / max(width, height)
        inner = max(1, round(width * scale)), max(1, round(height * scale))
        square = Image.new(image.mode, (size, size))
        square.paste(
            image.resize(inner, Image.Resampling.BOX), ((size - inner[0]) // 2, (size - inner[1]) // 2)
        )
        return square
    if image.size != (size, size):
        return image.resize((size, size), Image.Resampling.BOX)
    return image
