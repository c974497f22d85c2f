"""Maps stored values of a DICOM image to display values (DICOM PS3.3 C.7.6.3, C.11.1, C.11.2, C.11.6).

Every step depends only on the stored value, of which there are at most 65,536. The steps are therefore
applied to a lookup table of all values, and each pixel is looked up once.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from ral.data.images.bad_image import BadImage
from ral.data.images.histogram import histogram

if TYPE_CHECKING:
    from pydicom import Dataset

WHITE = 65535


def display(image: "Dataset", stored: np.ndarray, name: str) -> tuple[np.ndarray, str]:
    """Gray values 0 (black) to WHITE, uint16 [height, width], and a note (`ral.data.images.decode.NOTES`).

    Padding is black whatever the polarity, and is excluded from the value range. The modality LUT or rescale slope is
    applied first. Then the first non-empty VOI LUT, or else the first window, gives black and white; without
    either they are the minimum and maximum of the image. High values are dark if Presentation LUT Shape is
    INVERSE, or if it is absent and the image is MONOCHROME1.

    Args:
        image: the tags.
        stored: 8 or 16 bits [height, width], including unused bits.
        name: the image and its location, for the error.

    Raises:
        BadImage: it is blank, or a required tag cannot be read.
    """
    stored = stored.view(f"u{stored.itemsize}")
    patterns = np.arange(256**stored.itemsize)
    values = _stored_values(image, patterns)
    padding = _padding(image, patterns, values, 8 * stored.itemsize)
    shown, ends = _voi(image, _modality(image, values.astype(np.float64), name), name)
    used = ~padding
    # Otherwise it does not matter which values occur, and counting takes time.
    if ends is None or padding.any():
        used &= histogram(stored) > 0
    if not used.any():
        raise BadImage(name, "is blank", "every pixel is padding")
    if not np.isfinite(shown[used]).all():
        raise BadImage(name, "cannot be decoded", "its table or slope gives values that are no numbers")
    black, white = ends or (shown[used].min(), shown[used].max())
    if not white > black or shown[used].min() == shown[used].max():
        raise BadImage(name, "is blank", f"every pixel is {shown[used][0]:g}")
    share = np.clip((shown - black) / (white - black), 0, 1)
    inverse, note = _polarity(image)
    table = np.rint((1 - share if inverse else share) * WHITE)
    table[padding] = 0
    return table.astype(np.uint16)[stored], note


def display_colour(image: "Dataset", stored: np.ndarray, name: str) -> tuple[np.ndarray, str]:
    """Like `display`, for a gray RGB image [height, width, 3]; no window applies to it.

    Raises:
        BadImage: its three channels differ.
    """
    gray = stored[..., 0]
    for channel in (1, 2):
        if not np.array_equal(gray, stored[..., channel]):
            raise BadImage(name, "is not a grayscale image", "RGB with channels that differ")
    most = (1 << int(image.BitsStored)) - 1
    table = np.rint(np.minimum(np.arange(256**stored.itemsize), most) * (WHITE / most)).astype(np.uint16)
    return table[np.ascontiguousarray(gray).view(f"u{stored.itemsize}")], ""


def _stored_values(image: "Dataset", patterns: np.ndarray) -> np.ndarray:
    """Decode bit patterns to numbers: the upper bits are unused, and the highest used bit is the sign, if any."""
    bits = int(image.BitsStored)
    values = patterns & ((1 << bits) - 1)
    if int(image.PixelRepresentation):
        values = np.where(values >> (bits - 1), values - (1 << bits), values)
    return values


def _padding(image: "Dataset", patterns: np.ndarray, values: np.ndarray, bits: int) -> np.ndarray:
    """Which patterns are padding: Pixel Padding Value, or the range from it to Pixel Padding Range Limit.

    The tags are interpreted with the signedness of the pixels, even if they are written otherwise. Padding may use bits
    beyond the stored ones, so full patterns are compared too.
    """
    ends = [_sixteen_bits(image, tag) for tag in ("PixelPaddingValue", "PixelPaddingRangeLimit")]
    if ends[0] is None:
        return np.zeros(len(patterns), bool)
    signed = bool(image.PixelRepresentation)
    known = [end - 65536 if signed and end > 32767 else end for end in ends if end is not None]
    low, high = min(known), max(known)
    whole = np.where(patterns >> (bits - 1), patterns - (1 << bits), patterns) if signed else patterns
    beyond = patterns >> int(image.BitsStored) > 0
    return ((values >= low) & (values <= high)) | (beyond & (whole >= low) & (whole <= high))


def _exp(values: np.ndarray) -> np.ndarray:
    """exp from operations that are bit-identical on all processors, unlike np.exp."""
    whole = np.rint(values / 0.6931471805599453)
    rest = values - whole * 0.6931471805599453
    total = np.ones_like(values)
    for term in range(16, 0, -1):
        total = 1 + total * rest / term
    return np.asarray(np.ldexp(total, whole.astype(np.int32)))


def _modality(image: "Dataset", values: np.ndarray, name: str) -> np.ndarray:
    table = _lookup_table(image, "ModalityLUTSequence", values, name)
    if table is not None:
        return table[0]
    slope, intercept = (_number(image, tag, name) for tag in ("RescaleSlope", "RescaleIntercept"))
    return values * (1 if slope is None else slope) + (intercept or 0)


def _voi(image: "Dataset", values: np.ndarray, name: str) -> tuple[np.ndarray, tuple[float, float] | None]:
    """Apply the first VOI LUT or window; returns the values and (black, white), or None for the latter if
    there is neither.
    """
    table = _lookup_table(image, "VOILUTSequence", values, name)
    if table is not None:
        return table
    center, width = (_number(image, tag, name) for tag in ("WindowCenter", "WindowWidth"))
    function = str(image.get("VOILUTFunction") or "LINEAR").strip().upper()
    if center is None or width is None or not width > (0 if function in ("SIGMOID", "LINEAR_EXACT") else 1):
        return values, None
    if function == "SIGMOID":
        return 1 / (1 + _exp(np.clip(-4 * (values - center) / width, -80, 80))), (0.0, 1.0)
    if function == "LINEAR_EXACT":
        low, high = center - width / 2, center + width / 2
    else:
        low, high = center - 0.5 - (width - 1) / 2, center - 0.5 + (width - 1) / 2
    return np.clip(values, low, high), (low, high)


def _lookup_table(
    image: "Dataset", sequence: str, values: np.ndarray, name: str
) -> tuple[np.ndarray, tuple[float, float]] | None:
    """Apply the first non-empty table of a sequence; returns the values and (minimum, maximum) of the table, or None.

    The bit depth in the descriptor is ignored: it is often wrong, and 8-bit entries come as bytes or as words.
    """
    for item in image.get(sequence) or []:
        described, entries = (_words(item, tag, image) for tag in ("LUTDescriptor", "LUTData"))
        if len(described) < 3 or not len(entries):
            continue
        length = int(described[0]) or 65536
        if len(entries) <= (length + 1) // 2:
            entries = entries.view(np.uint8)
        if len(entries) < length:
            raise BadImage(
                name, "has a lookup table that is cut short", f"{len(entries)} of {length} entries"
            )
        first = int(described[1])
        # Signed if the input is signed; also if the table would otherwise exceed 16 bits.
        if first > 32767 and (image.PixelRepresentation or values.min() < 0 or first + length > 65536):
            first -= 65536
        entries = entries[:length].astype(np.float64)
        index = np.clip(np.rint(values) - first, 0, length - 1).astype(np.int64)
        return entries[index], (float(entries.min()), float(entries.max()))
    return None


def _polarity(image: "Dataset") -> tuple[bool, str]:
    """Whether high values are dark, and a note."""
    dark = image.PhotometricInterpretation == "MONOCHROME1"
    shape = str(image.get("PresentationLUTShape") or "").strip().upper()
    if shape not in ("IDENTITY", "INVERSE"):
        return dark, ""
    return shape == "INVERSE", "" if dark == (shape == "INVERSE") else "polarity"


def _raw(item: "Dataset", tag: str) -> Any:
    """Raw value of a tag (bytes, unless pydicom has converted it); None if it is absent or empty."""
    element = item.get_item(tag) if tag in item else None
    return None if element is None or element.value in (None, "", b"") else element.value


def _number(image: "Dataset", tag: str, name: str) -> float | None:
    """First decimal number of a tag, also with a decimal comma; None if it is absent or empty.

    Raises:
        BadImage: it is not a number.
    """
    value = _raw(image, tag)
    text = value.decode("latin-1") if isinstance(value, bytes) else "" if value is None else str(value)
    first = text.split("\\")[0].strip(" \0")
    if not first:
        return None
    try:
        number = float(first.replace(",", "."))
    except ValueError:
        number = np.nan
    if not np.isfinite(number):
        raise BadImage(name, "has a tag that is no number", f"{tag} {first[:40]!r}")
    return number


def _words(item: "Dataset", tag: str, image: "Dataset") -> np.ndarray:
    """Unsigned 16-bit words of a tag, whatever its value representation; empty if it is absent."""
    value = _raw(item, tag)
    if value is None:
        return np.zeros(0, np.uint16)
    if isinstance(value, bytes):
        order = "<" if image.original_encoding[1] is not False else ">"
        return np.frombuffer(value[: len(value) // 2 * 2], f"{order}u2").astype(np.uint16)
    return np.atleast_1d(np.asarray(value, np.int64) & 0xFFFF).astype(np.uint16)


def _sixteen_bits(image: "Dataset", tag: str) -> int | None:
    words = _words(image, tag, image)
    return int(words[0]) if len(words) else None
