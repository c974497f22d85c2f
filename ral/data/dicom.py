"""The pixels of a DICOM film, and nothing else of it: only the tags listed here are ever read.

    pip install 'ral[dicom]'           # pydicom, and GDCM for the compressed transfer syntaxes

Uncompressed and RLE films need pydicom alone; JPEG (baseline, lossless), JPEG-LS and JPEG 2000 need GDCM.
"""

import io
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from ral.data.pixels import BadFilm, check_extent
from ral.errors import UserError

if TYPE_CHECKING:
    from pydicom import Dataset

# What is needed to show the film. No name, date, id, free text or place is among them, so none can be passed on.
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
    "RescaleIntercept",
    "RescaleSlope",
    "ModalityLUTSequence",
    "WindowCenter",
    "WindowWidth",
    "VOILUTFunction",
    "VOILUTSequence",
    "PixelData",
)


def read_dicom(content: bytes, name: str) -> tuple[np.ndarray, float, float]:
    """The pixels of a DICOM film as a reader's screen shows them, dark to bright.

    The modality's table or slope is applied, then the first lookup table or window (DICOM PS3.3 C.11.1, C.11.2);
    MONOCHROME1, where high values are dark, is inverted.

    Returns:
        Values float32 [height, width], and the values that are black and white: the ends of the window or table
        where the film has one, else the film's own least and greatest value.

    Raises:
        BadFilm: the file is damaged, has no pixels, or is no single grayscale image.
        UserError: pydicom, or the decoder that this film needs, is not installed.
    """
    try:
        import pydicom
        from pydicom.pixels import apply_modality_lut
    except ImportError:
        raise UserError(
            f"{name} is a DICOM file, and pydicom is not installed. Install it: pip install 'ral[dicom]'"
        ) from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of values that do not keep to the standard; what matters is checked
        try:
            film = pydicom.dcmread(io.BytesIO(content), specific_tags=list(TAGS))
            _check(film, name)
            values = apply_modality_lut(_pixels(film, name), film)
            shown, low, high = _window(values, film)
        except UserError:
            raise
        except Exception as error:  # noqa: BLE001  # pydicom raises whatever a damaged file makes it stumble on
            raise BadFilm(name, "cannot be decoded", f"{type(error).__name__}: {error}") from None
    if not np.isfinite(shown).all():
        raise BadFilm(name, "cannot be decoded", "its table or slope gives values that are no numbers")
    if film.PhotometricInterpretation == "MONOCHROME1":
        shown = low + high - shown
    return np.ascontiguousarray(shown, np.float32), low, high


def _check(film: "Dataset", name: str) -> None:
    if not film.get("PixelData"):
        raise BadFilm(name, "is a DICOM file without pixels")
    check_extent(int(film.Columns), int(film.Rows), name)
    kind = film.get("PhotometricInterpretation", "")
    if kind not in ("MONOCHROME1", "MONOCHROME2") or film.get("SamplesPerPixel", 1) != 1:
        raise BadFilm(name, "is not a grayscale image", kind or "no photometric interpretation")
    if int(film.get("NumberOfFrames") or 1) > 1:
        raise BadFilm(name, "is a sequence of images, not a film", f"{film.NumberOfFrames} frames")


def _pixels(film: "Dataset", name: str) -> np.ndarray:
    """Stored values, decompressed by whichever decoder is installed."""
    from pydicom.pixels import get_decoder
    from pydicom.uid import UID

    syntax = UID(film.file_meta.TransferSyntaxUID)
    if syntax.is_encapsulated:
        try:
            decoder = get_decoder(syntax)
        except NotImplementedError:
            raise BadFilm(name, "has a transfer syntax that is not known", str(syntax.name)) from None
        if not decoder.is_available:
            raise UserError(
                f"{name} is compressed as {syntax.name}, and no decoder for that is installed. "
                "Install one: pip install 'ral[dicom]'"
            )
    return film.pixel_array


def _window(values: np.ndarray, film: "Dataset") -> tuple[np.ndarray, float, float]:
    """Values under the film's first VOI lookup table or window, and what of them is black and white."""
    from pydicom.pixels import apply_voi

    if film.get("VOILUTSequence"):
        table = film.VOILUTSequence[0]
        shown = apply_voi(values.astype(np.int64), film, 0)
        return shown.astype(np.float32), 0.0, float(2 ** int(table.LUTDescriptor[2]) - 1)
    center, width = _first(film.get("WindowCenter")), _first(film.get("WindowWidth"))
    function = film.get("VOILUTFunction") or "LINEAR"
    least = 1 if function == "LINEAR" else 0
    if center is None or width is None or not width > least:
        return values.astype(np.float32), float(values.min()), float(values.max())
    x = values.astype(np.float32)
    if function == "SIGMOID":
        return 1 / (1 + np.exp(np.clip(-4 * (x - center) / width, -80, 80))), 0.0, 1.0
    if function == "LINEAR_EXACT":
        return np.clip(x, center - width / 2, center + width / 2), center - width / 2, center + width / 2
    low, high = center - 0.5 - (width - 1) / 2, center - 0.5 + (width - 1) / 2
    return np.clip(x, low, high), low, high


def _first(value: Any) -> float | None:
    """The first of several windows, or the only one."""
    if value is None or value == "":
        return None
    return float(value if isinstance(value, int | float | str) else value[0])
