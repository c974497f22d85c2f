"""What a screen shows for the values that a DICOM image stores (DICOM PS3.3 C.7.6.3, C.11.1, C.11.2, C.11.6).

Every step is a function of the stored value alone, and there are at most 65,536 of those: the steps are done on a table of them, and
each pixel is looked up once.
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

    Padding is black whatever the polarity, and does not count for the image's own range. The modality's table or slope
    is applied, then the first VOI table that has entries, else the first window, whose ends are black and white; without
    either, the image's own least and greatest value are. Where Presentation LUT Shape says INVERSE, or says nothing and
    the image is MONOCHROME1, high values are dark.

    Args:
        image: the tags.
        stored: 8 or 16 bits [height, width], with the bits that are not used.
        name: where the image comes from, for the error.

    Raises:
        BadImage: it is blank, or a tag that is needed cannot be read.
    """
    stored = stored.view(f"u{stored.itemsize}")
    patterns = np.arange(256**stored.itemsize)
    values = _stored_values(image, patterns)
    padding = _padding(image, patterns, values, 8 * stored.itemsize)
    shown, ends = _voi(image, _modality(image, values.astype(np.float64), name), name)
    used = ~padding
    if (
        ends is None or padding.any()
    ):  # else it does not matter which values occur, and counting them takes time
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
    """As `display`, of an RGB image [height, width, 3] that is gray; no window applies to it.

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
    """The number that a pattern of bits stands for: the upper bits are not used, and the sign is the topmost of the others."""
    bits = int(image.BitsStored)
    values = patterns & ((1 << bits) - 1)
    if int(image.PixelRepresentation):
        values = np.where(values >> (bits - 1), values - (1 << bits), values)
    return values


def _padding(image: "Dataset", patterns: np.ndarray, values: np.ndarray, bits: int) -> np.ndarray:
    """Which patterns are padding: Pixel Padding Value, or what is between it and Pixel Padding Range Limit.

    A value written as unsigned in a signed image, or the other way round, is taken as the image's pixels are. Padding may
    lie outside the bits that are used, so patterns are compared with all their bits, too.
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
    """exp by operations that give the same bits on every processor; numpy's own does not."""
    whole = np.rint(values / 0.6931471805599453)
    rest = values - whole * 0.6931471805599453
    total = np.ones_like(values)
    for term in range(16, 0, -1):
        total = 1 + total * rest / term
    return np.ldexp(total, whole.astype(np.int32))


def _modality(image: "Dataset", values: np.ndarray, name: str) -> np.ndarray:
    table = _lookup_table(image, "ModalityLUTSequence", values, name)
    if table is not None:
        return table[0]
    slope, intercept = (_number(image, tag, name) for tag in ("RescaleSlope", "RescaleIntercept"))
    return values * (1 if slope is None else slope) + (intercept or 0)


def _voi(image: "Dataset", values: np.ndarray, name: str) -> tuple[np.ndarray, tuple[float, float] | None]:
    """Values under the image's first VOI lookup table or window, and what of them is black and white; None if it has neither."""
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
    """Values through the sequence's first table, and its least and greatest entry; None if no table has entries.

    The bits that the descriptor names are not trusted: tables of 12 bits say 16, and entries of 8 bits come in bytes or words.
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
        # It is signed where its input is; a table must not reach beyond 16 bits either.
        if first > 32767 and (image.PixelRepresentation or values.min() < 0 or first + length > 65536):
            first -= 65536
        entries = entries[:length].astype(np.float64)
        at = np.clip(np.rint(values) - first, 0, length - 1).astype(np.int64)
        return entries[at], (float(entries.min()), float(entries.max()))
    return None


def _polarity(image: "Dataset") -> tuple[bool, str]:
    """Whether high values are dark, and a note."""
    dark = image.PhotometricInterpretation == "MONOCHROME1"
    shape = str(image.get("PresentationLUTShape") or "").strip().upper()
    if shape not in ("IDENTITY", "INVERSE"):
        return dark, ""
    return shape == "INVERSE", "" if dark == (shape == "INVERSE") else "polarity"


def _raw(item: "Dataset", tag: str) -> Any:
    """A tag's value as it stands in the file (bytes), unless pydicom has converted it; None if it is absent or empty."""
    element = item.get_item(tag) if tag in item else None
    return None if element is None or element.value in (None, "", b"") else element.value


def _number(image: "Dataset", tag: str, name: str) -> float | None:
    """The first of a tag's decimal numbers, which may have a comma; None if it is absent or empty.

    Raises:
        BadImage: it is no number.
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
    """A tag's 16-bit words, unsigned, whatever its value representation says; empty if it is absent."""
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
