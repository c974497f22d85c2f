"""Reads the pixels of a DICOM image. Only the tags listed here are ever read.

    pip install -c constraints.txt -e '.[dicom]'    # pydicom, and GDCM for the compressed transfer syntaxes

Uncompressed and RLE images need pydicom alone; JPEG (baseline, lossless), JPEG-LS and JPEG 2000 need GDCM.
For the mapping of stored values to display values see `ral.data.images.dicom_display`.
"""

import io
import struct
import warnings
import zlib
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from ral.data.images.bad_image import BadImage, check_extent
from ral.data.images.limits import MAX_BYTES
from ral.errors import UserError
from ral.extras import install_command

if TYPE_CHECKING:
    from pydicom import Dataset

# Tags needed to display the image. None contains names, dates, ids, free text or locations, so none can leak.
TAGS = (
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "RescaleIntercept",
    "RescaleSlope",
    "ModalityLUTSequence",
    "WindowCenter",
    "WindowWidth",
    "VOILUTFunction",
    "VOILUTSequence",
    "PresentationLUTShape",
    "PixelData",
)

# Tags that describe an image without its pixels; none of them identifies a person either.
HEADER_TAGS = ("ViewPosition", "Rows", "Columns")

DEFLATED = "1.2.840.10008.1.2.1.99"
RLE = "1.2.840.10008.1.2.5"
# Value representations with a length field of four bytes instead of two.
_LONG = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")


def read_dicom(content: bytes, start: int, name: str) -> tuple[np.ndarray, str]:
    """Read the display values of a DICOM image: black is 0, white is the maximum of the type.

    Args:
        content: the file.
        start: offset of its first element (`ral.data.images.decode.dicom_start`).
        name: the image and its location, for the error.

    Returns:
        Values uint16 [height, width], and a note (`ral.data.images.decode.NOTES`), usually "".

    Raises:
        BadImage: the file is damaged, has no pixels, or is not a single grayscale image.
        UserError: pydicom or the decoder for this image is not installed.
    """
    try:
        import pydicom
    except ImportError:
        raise UserError(
            f"{name} is a DICOM file, but pydicom is not installed. Install it: {install_command('dicom')}"
        ) from None
    from ral.data.images.dicom_display import display, display_colour

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about values that violate the standard; relevant ones are checked
        try:
            image = pydicom.dcmread(io.BytesIO(_normal_form(content, start, name)), specific_tags=list(TAGS))
            colour = _check(image, name)
            stored = _pixels(image, name)
            return (display_colour if colour else display)(image, stored, name)
        except UserError:
            raise
        except Exception as error:  # noqa: BLE001  # pydicom raises arbitrary exceptions for damaged files
            raise BadImage(
                name, "cannot be decoded", " ".join(str(error).split()) or type(error).__name__
            ) from None


def read_header(content: bytes, start: int, name: str) -> tuple[str, int, int]:
    """View (PA, AP, LATERAL, …; "" if there is none), rows and columns of a DICOM image, without its pixels.

    Args:
        content: the file.
        start: offset of its first element (`ral.data.images.decode.dicom_start`).
        name: the image and its location, for the error.

    Raises:
        BadImage: the file is damaged.
    """
    import pydicom

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = pydicom.dcmread(
                io.BytesIO(_normal_form(content, start, name)),
                specific_tags=list(HEADER_TAGS),
                stop_before_pixels=True,
            )
            view = str(image.get("ViewPosition") or "").strip().upper()
            return _LATERAL.get(view, view), int(image.get("Rows") or 0), int(image.get("Columns") or 0)
        except UserError:
            raise
        except Exception as error:  # noqa: BLE001  # pydicom raises arbitrary exceptions for damaged files
            raise BadImage(name, "cannot be decoded", " ".join(str(error).split())) from None


# Left and right lateral.
_LATERAL = {"LL": "LATERAL", "RL": "LATERAL", "LAT": "LATERAL"}


def _normal_form(content: bytes, start: int, name: str) -> bytes:
    """The file with preamble and `DICM`, inflated if it is deflated."""
    if start != 132:
        content = bytes(128) + b"DICM" + content[start:]
    syntax, end = _transfer_syntax(content)
    if syntax == DEFLATED:
        unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
        body = unpacker.decompress(content[end:], MAX_BYTES + 1)
        if len(body) > MAX_BYTES:
            raise BadImage(
                name, "is too large to be an image", f"more than {MAX_BYTES} bytes when it is inflated"
            )
        if not unpacker.eof:
            raise BadImage(name, "cannot be decoded", "its deflated part is cut short")
        return bytes(128) + b"DICM\2\0\x10\0UI\x14\x001.2.840.10008.1.2.1\0" + body
    if DEFLATED.encode() in content[: end + 1024] or (not syntax and DEFLATED.encode() in content):
        # pydicom may parse what `_transfer_syntax` does not, and inflates without a limit.
        raise BadImage(name, "cannot be decoded", "its transfer syntax is not where it should be")
    return content


def _transfer_syntax(content: bytes) -> tuple[str, int]:
    """Transfer syntax in the meta group ("" if none), and the end of the group."""
    syntax, offset = "", 132
    while content[offset : offset + 2] == b"\2\0" and offset + 12 <= len(content):
        long = content[offset + 4 : offset + 6] in _LONG
        (length,) = struct.unpack_from("<L" if long else "<H", content, offset + (8 if long else 6))
        value = offset + (12 if long else 8)
        if content[offset + 2 : offset + 4] == b"\x10\0":
            syntax = content[value : value + length].decode("latin-1").strip(" \0")
        offset = value + length
    return syntax, offset


def _check(image: "Dataset", name: str) -> bool:
    """Reject anything but a single gray image before decoding; returns whether it is RGB, which may still be gray."""
    if not image.get("PixelData"):
        raise BadImage(name, "is a DICOM file without pixels", "or it is cut short")
    rows, columns = (int(image.get(tag) or 0) for tag in ("Rows", "Columns"))
    if not rows or not columns:
        raise BadImage(name, "is a DICOM file without a size", f"Rows {rows}, Columns {columns}")
    check_extent(columns, rows, name)
    kind = str(image.get("PhotometricInterpretation") or "").strip().upper()
    samples = int(image.get("SamplesPerPixel") or 1)
    colour = (kind, samples) == ("RGB", 3)
    if not colour and (kind not in ("MONOCHROME1", "MONOCHROME2") or samples != 1):
        raise BadImage(name, "is not a grayscale image", kind or "no photometric interpretation")
    image.PhotometricInterpretation, image.SamplesPerPixel = kind, samples
    if int(image.get("NumberOfFrames") or 1) > 1:
        raise BadImage(name, "is a sequence of images, not an image", f"{image.NumberOfFrames} frames")
    if image.get("BitsAllocated") not in (1, 8, 16, None):
        raise BadImage(name, "has more bits than an image", f"{image.BitsAllocated} bits for each pixel")
    return colour


def _pixels(image: "Dataset", name: str) -> np.ndarray:
    """Stored values with all their bits, including unused ones, decompressed by an installed decoder."""
    from pydicom.pixels import get_decoder
    from pydicom.uid import UID

    syntax = UID(image.file_meta.get("TransferSyntaxUID") or _guessed_syntax(image, name))
    image.file_meta.TransferSyntaxUID = syntax
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise BadImage(name, "has a transfer syntax that is not known", str(syntax.name)) from None
    if not decoder.is_available:
        raise UserError(
            f"{name} is compressed as {syntax.name}, but no decoder for it is installed. "
            f"Install one: {install_command('dicom')}"
        )
    image.NumberOfFrames = 1
    # Unused bits may contain the padding value, so they are preserved.
    options: dict[str, Any] = {"index": 0, "raw": True, "correct_unused_bits": False}
    if syntax.is_encapsulated:
        _check_compressed(image, syntax, name)
    else:
        _check_length(image, name)
        options["view_only"] = True
    stored = decoder.as_array(image, **options)[0]
    return stored.astype(stored.dtype.newbyteorder("="), copy=False)


def _guessed_syntax(image: "Dataset", name: str) -> str:
    """Transfer syntax of a file that names none: one of the uncompressed ones, as detected by pydicom."""
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    if image["PixelData"].is_undefined_length:
        raise BadImage(name, "has compressed pixels but names no transfer syntax")
    implicit, little = image.original_encoding
    if implicit:
        return ImplicitVRLittleEndian
    return ExplicitVRLittleEndian if little else ExplicitVRBigEndian


def _check_length(image: "Dataset", name: str) -> None:
    """Check that the number of uncompressed pixels matches the size; up to one row of padding is allowed."""
    row = int(image.Columns) * image.SamplesPerPixel * int(image.BitsAllocated)
    least, bits = row * int(image.Rows), 8 * len(image.PixelData)
    if not least <= bits < least + max(row, 32):
        raise BadImage(
            name, "has another number of pixels than it says",
            f"{image.Rows} x {image.Columns} take {-(-least // 8)} bytes, {bits // 8} are there",
        )  # fmt: skip


def _check_compressed(image: "Dataset", syntax: str, name: str) -> None:
    """Check, before memory is allocated, that compressed pixels are one image of the size in the tags."""
    from pydicom.encaps import get_frame, parse_basic_offsets

    offsets = parse_basic_offsets(image.PixelData)
    if len(offsets) > 1:
        raise BadImage(name, "is a sequence of images, not an image", f"{len(offsets)} frames")
    code = get_frame(image.PixelData, 0, number_of_frames=1)
    size = int(image.Rows), int(image.Columns)
    if syntax == RLE:
        _check_run_lengths(code, size[0] * size[1], name)
        return
    check_extent(size[1], size[0], name, len(code))
    decoded = _jpeg_2000_size(code) if code[:2] != b"\xff\xd8" else _jpeg_size(code)
    if decoded != (*size, image.SamplesPerPixel):
        raise BadImage(
            name, "has another number of pixels than it says",
            f"{size[0]} x {size[1]} x {image.SamplesPerPixel} in its tags, "
            f"{' x '.join(map(str, decoded))} in its compressed pixels",
        )  # fmt: skip


def _jpeg_2000_size(code: bytes) -> tuple[int, int, int]:
    """Rows, columns and samples in the header of a JPEG 2000 stream, which may be in a JP2 file.

    Raises:
        ValueError: there is no such header.
    """
    offset, start = 0, b"\xff\x4f\xff\x51"
    while code[offset : offset + 4] != start and offset + 16 <= len(code):
        length, kind = struct.unpack_from(">L4s", code, offset)
        header = 16 if length == 1 else 8
        if length == 1:
            (length,) = struct.unpack_from(">Q", code, offset + 8)
        offset += header if kind == b"jp2c" else max(length, header)
    if code[offset : offset + 4] != start:
        raise ValueError("its compressed pixels have no header")
    right, bottom, left, top, samples = struct.unpack_from(">4L16xH", code, offset + 8)
    return bottom - top, right - left, samples


def _jpeg_size(code: bytes) -> tuple[int, int, int]:
    """Rows, columns and samples in the header of a JPEG or JPEG-LS stream.

    Raises:
        ValueError: there is no such header.
    """
    offset = 2
    while offset + 10 <= len(code) and code[offset] == 0xFF:
        marker = code[offset + 1]
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            rows, columns, samples = struct.unpack_from(">HHB", code, offset + 5)
            return rows, columns, samples
        # Any number of FF bytes may precede a marker.
        offset += 1 if marker == 0xFF else 2 + int(struct.unpack_from(">H", code, offset + 2)[0])
    raise ValueError("its compressed pixels have no header")


def _check_run_lengths(code: bytes, pixels: int, name: str) -> None:
    """Check that an RLE segment unpacks to one byte per pixel; two bytes expand to 128, so a few MB could
    fill memory.
    """
    segments, *starts = struct.unpack_from("<16L", code)
    starts = [*starts[:segments], len(code)]
    for offset, end in pairwise(starts):
        unpacked = 0
        while offset + 1 < end and unpacked <= pixels + 1:
            control = code[offset]
            unpacked += control + 1 if control < 128 else 257 - control if control > 128 else 0
            offset += control + 2 if control < 128 else 2 if control > 128 else 1
        if unpacked > pixels + 1:
            raise BadImage(name, "has another number of pixels than it says", "its runs unpack to more")
