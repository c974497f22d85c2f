"""DICOM files for tests: made tag by tag, compressed by GDCM."""

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom", reason="needs the extra dicom")
gdcm = pytest.importorskip("gdcm", reason="needs the extra dicom")

NAME = "Film x"
RAMP = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)


def dicom(values: np.ndarray | None = RAMP, bits: int = 12, **tags: Any) -> bytes:
    """A DICOM file, uncompressed unless `_syntax` says otherwise, with identifying tags planted."""
    film = pydicom.Dataset()
    film.file_meta = pydicom.dataset.FileMetaDataset()
    film.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    film.file_meta.MediaStorageSOPClassUID = film.SOPClassUID = (
        pydicom.uid.DigitalXRayImageStorageForPresentation
    )
    film.file_meta.MediaStorageSOPInstanceUID = film.SOPInstanceUID = "1.2.3"
    film.PatientName, film.PatientID, film.PatientBirthDate = "PLANTED^NAME", "PLANTED-ID", "19010203"
    film.StudyDescription = "PLANTED TEXT"
    if values is not None:
        film.Rows, film.Columns = values.shape
        film.SamplesPerPixel, film.PhotometricInterpretation = 1, "MONOCHROME2"
        film.BitsAllocated, film.BitsStored, film.HighBit = values.itemsize * 8, bits, bits - 1
        film.PixelRepresentation = int(np.issubdtype(values.dtype, np.signedinteger))
        film.PixelData = values.tobytes()
        film["PixelData"].VR = "OW" if values.itemsize == 2 else "OB"
    for name, value in tags.items():
        setattr(film, name, value)
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, film, enforce_file_format=True)
    return stream.getvalue()


def table(first: int, values: list[int], bits: int = 8) -> "pydicom.Sequence":
    item = pydicom.Dataset()
    item.LUTDescriptor, item.LUTData = (
        [len(values) % 65536, first, bits],
        np.array(values, np.uint16).tobytes(),
    )
    return pydicom.Sequence([item])


def compress(content: bytes, syntax: str, folder: Path) -> bytes:
    source, target = str(folder / "a.dcm"), str(folder / "b.dcm")
    Path(source).write_bytes(content)
    reader = gdcm.ImageReader()
    reader.SetFileName(source)
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(target)
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    return Path(target).read_bytes()


def with_pixels(code: bytes, syntax: str, **tags: Any) -> bytes:
    """A DICOM file of 64 x 64 pixels, or as the tags say, with these compressed pixels."""
    film = pydicom.dcmread(io.BytesIO(dicom(**tags)))
    film.file_meta.TransferSyntaxUID = syntax
    film.PixelData = pydicom.encaps.encapsulate([code])
    film["PixelData"].VR, film["PixelData"].is_undefined_length = "OB", True
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, film, enforce_file_format=True)
    return stream.getvalue()


def near(read: np.ndarray, wanted: np.ndarray) -> None:
    assert np.abs(read - np.clip(wanted, 0, 1) * 255).max() <= 0.51


def explicit(tag: int, representation: bytes, value: bytes) -> bytes:
    return struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, representation, len(value)) + value


def rewritten(content: bytes, tag: int, element: bytes) -> bytes:
    """The file with a short element replaced by other bytes."""
    start = content.index(struct.pack("<HH", tag >> 16, tag & 0xFFFF))
    (length,) = struct.unpack_from("<H", content, start + 6)
    return content[:start] + element + content[start + 8 + length :]
