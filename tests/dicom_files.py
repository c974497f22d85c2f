"""DICOM files for tests: made tag by tag, compressed by GDCM."""

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom", reason="needs the extra dicom")
gdcm = pytest.importorskip("gdcm", reason="needs the extra dicom")

NAME = "Image x"
RAMP = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)


def dicom(values: np.ndarray | None = RAMP, bits: int = 12, **tags: Any) -> bytes:
    """A DICOM file, uncompressed unless `_syntax` says otherwise, with identifying tags planted."""
    image = pydicom.Dataset()
    image.file_meta = pydicom.dataset.FileMetaDataset()
    image.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID = (
        pydicom.uid.DigitalXRayImageStorageForPresentation
    )
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID = "1.2.3"
    image.PatientName, image.PatientID, image.PatientBirthDate = "PLANTED^NAME", "PLANTED-ID", "19010203"
    image.StudyDescription = "PLANTED TEXT"
    if values is not None:
        image.Rows, image.Columns = values.shape
        image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
        image.BitsAllocated, image.BitsStored, image.HighBit = values.itemsize * 8, bits, bits - 1
        image.PixelRepresentation = int(np.issubdtype(values.dtype, np.signedinteger))
        image.PixelData = values.tobytes()
        image["PixelData"].VR = "OW" if values.itemsize == 2 else "OB"
    for name, value in tags.items():
        setattr(image, name, value)
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, image, enforce_file_format=True)
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
    image = pydicom.dcmread(io.BytesIO(dicom(**tags)))
    image.file_meta.TransferSyntaxUID = syntax
    image.PixelData = pydicom.encaps.encapsulate([code])
    image["PixelData"].VR, image["PixelData"].is_undefined_length = "OB", True
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, image, enforce_file_format=True)
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
