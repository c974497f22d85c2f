"""DICOM files: every transfer syntax, files that lack their beginning, no tag but those for pixels, what is
no image.
"""

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_files import NAME, RAMP, compress, dicom, explicit, near, pydicom, with_pixels

from ral.data.images.bad_image import BadImage
from ral.data.images.decode import decode
from ral.data.images.dicom import TAGS, read_dicom
from ral.errors import UserError

OWN = RAMP / 4095

SYNTAXES = {
    "RLELossless": 12,
    "JPEGLosslessProcess14_1": 12,
    "JPEGLosslessProcess14": 12,
    "JPEGLSLossless": 12,
    "JPEG2000Lossless": 12,
    "JPEG2000": 12,
    "JPEGBaselineProcess1": 8,
}


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_transfer_syntaxes_of_chest_images(syntax: str, tmp_path: Path) -> None:
    bits = SYNTAXES[syntax]
    content = dicom(RAMP if bits == 12 else (RAMP // 16).astype(np.uint8), bits)
    packed = compress(content, syntax, tmp_path)
    named = pydicom.dcmread(io.BytesIO(packed)).file_meta.TransferSyntaxUID
    assert named.is_compressed
    lossy = 8 if syntax in ("JPEGBaselineProcess1", "JPEG2000") else 0
    difference = decode(packed, 64, NAME).astype(int) - decode(content, 64, NAME)
    assert np.abs(difference).max() <= lossy


def test_no_decoder_names_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = compress(dicom(), "JPEGLosslessProcess14_1", tmp_path)
    decoder = pydicom.pixels.get_decoder(pydicom.uid.JPEGLosslessSV1)
    monkeypatch.setattr(decoder, "_available", {})
    with pytest.raises(
        UserError, match=r"JPEG Lossless.* no decoder .*pip install -c constraints\.txt -e '\.\[dicom\]'"
    ) as caught:
        decode(content, 64, NAME)
    assert not isinstance(caught.value, BadImage)  # the machine's fault: never quarantined


def test_without_pydicom(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(
        UserError, match=r"pydicom is not installed.*pip install -c constraints\.txt -e '\.\[dicom\]'"
    ):
        decode(dicom(), 64, NAME)


def test_only_listed_tags_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    real = pydicom.dcmread
    monkeypatch.setattr(pydicom, "dcmread", lambda *a, **k: seen.append(real(*a, **k)) or seen[-1])
    read_dicom(dicom(), 132, NAME)
    assert {item.keyword for item in seen[0]} <= {*TAGS, "SpecificCharacterSet"}
    assert "PLANTED" not in str(seen[0])
    assert not any("Name" in tag or "Date" in tag or "ID" in tag or "Description" in tag for tag in TAGS)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (dicom(None), "is a DICOM file without pixels"),
        (dicom(PixelData=b""), "is a DICOM file without pixels"),
        (dicom()[:-3000], "has another number of pixels than it says"),
        (b"\0" * 128 + b"DICM", "DICOM file without pixels"),
        (dicom(PhotometricInterpretation="RGB"), "is not a grayscale image"),
        (dicom(NumberOfFrames=2), "is a sequence of images"),
        (dicom(np.full((64, 64), 9, np.uint16)), "is blank"),
        (dicom(WindowCenter=9000, WindowWidth=10), "is blank"),
        (dicom(Rows=20000, Columns=20000), "is too large to be an image"),
        (dicom(RescaleSlope=float("inf"), RescaleIntercept=0), "has a tag that is no number"),
    ],
)
def test_what_is_no_image(content: bytes, reason: str) -> None:
    with pytest.raises(BadImage, match=reason):
        decode(content, 64, NAME)


def encoded(implicit: bool, little: bool = True) -> bytes:
    """The data set of a file alone, in one of the three uncompressed encodings."""
    image = pydicom.dcmread(io.BytesIO(dicom()))
    if not little:
        image.PixelData = RAMP.astype(">u2").tobytes()
    stream = pydicom.filebase.DicomBytesIO()
    stream.is_implicit_VR, stream.is_little_endian = implicit, little
    body = pydicom.Dataset()
    body.update(image)  # without its meta group
    pydicom.filewriter.write_dataset(stream, body)
    return stream.getvalue()


ENCODINGS = {"implicit": encoded(True), "explicit": encoded(False), "big": encoded(False, False)}
CLASS = explicit(0x00020002, b"UI", b"1.2.840.10008.5.1.4\0")
STARTS = {
    "nothing before": b"",
    "DICM alone": b"DICM",
    "128 bytes alone": bytes(128),
    "no meta group": bytes(128) + b"DICM",
    "no transfer syntax": bytes(128) + b"DICM" + CLASS,
    "meta group alone": CLASS,
}


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("start", STARTS)
def test_file_without_preamble_or_transfer_syntax(encoding: str, start: str) -> None:
    near(decode(STARTS[start] + ENCODINGS[encoding], 64, NAME), OWN)


def test_meta_group_without_preamble(tmp_path: Path) -> None:
    content = compress(dicom(), "JPEGLosslessProcess14_1", tmp_path)
    near(decode(content[132:], 64, NAME), OWN)


def test_compressed_pixels_without_a_transfer_syntax(tmp_path: Path) -> None:
    content = compress(dicom(), "JPEGLosslessProcess14_1", tmp_path)
    body = content[content.index(b"\x08\0\x16\0UI") :]
    with pytest.raises(BadImage, match="has compressed pixels but names no transfer syntax"):
        decode(bytes(128) + b"DICM" + CLASS + body, 64, NAME)


def colour(values: np.ndarray, **tags: Any) -> bytes:
    tags = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0} | tags
    tags = {"PixelData": values.tobytes()} | tags
    return dicom(values[..., 0], 8 * values.itemsize, **tags)


@pytest.mark.parametrize("planar", [0, 1])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_gray_image_saved_as_rgb(planar: int, kind: type) -> None:
    gray = np.random.default_rng(0).integers(10, np.iinfo(kind).max - 9, (64, 64)).astype(kind)
    values = np.stack([gray] * 3, -1)
    content = colour(
        values,
        PixelData=(values.transpose(2, 0, 1) if planar else values).tobytes(),
        PlanarConfiguration=planar,
    )
    near(decode(content, 64, NAME), gray / np.iinfo(kind).max)


def test_colour_image_is_named() -> None:
    values = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    with pytest.raises(BadImage, match=r"is not a grayscale image \(RGB with channels that differ\)"):
        decode(colour(values), 64, NAME)
    for kind in ("YBR_FULL", "YBR_FULL_422", "PALETTE COLOR"):
        with pytest.raises(BadImage, match=rf"is not a grayscale image \({kind}\)"):
            decode(colour(values, PhotometricInterpretation=kind), 64, NAME)


def test_wider_pixels_are_refused() -> None:
    with pytest.raises(BadImage, match=r"has more bits than an image \(32 bits for each pixel\)"):
        decode(dicom(RAMP.astype(np.uint32), 32), 64, NAME)


@pytest.mark.parametrize("tags", [{"Rows": None}, {"Columns": 0}])
def test_no_size(tags: dict[str, Any]) -> None:
    with pytest.raises(BadImage, match="is a DICOM file without a size"):
        decode(dicom(**tags), 64, NAME)


def test_several_frames_in_the_offset_table(tmp_path: Path) -> None:
    code = with_pixels(bytes(64), "1.2.840.10008.1.2.5")
    image = pydicom.dcmread(io.BytesIO(code))
    image.PixelData = pydicom.encaps.encapsulate([bytes(64), bytes(64)])
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, image)
    with pytest.raises(BadImage, match=r"is a sequence of images, not an image \(2 frames\)"):
        decode(stream.getvalue(), 64, NAME)


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_compressed_file_cut_short(syntax: str, tmp_path: Path) -> None:
    bits = SYNTAXES[syntax]
    content = compress(dicom(RAMP if bits == 12 else (RAMP // 16).astype(np.uint8), bits), syntax, tmp_path)
    for share in (0.5, 0.9, 0.995):
        with pytest.raises(BadImage, match=r"without pixels \(or it is cut short\)|cannot be decoded"):
            decode(content[: int(len(content) * share)], 64, NAME)
