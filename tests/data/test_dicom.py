"""DICOM films: the grey values a reader's screen shows, every transfer syntax, and no tag but those for pixels."""

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_files import NAME, RAMP, compress, dicom, table

from ral.data.dicom import TAGS, read_dicom
from ral.data.pixels import BadFilm, decode
from ral.errors import UserError

pydicom = pytest.importorskip("pydicom", reason="needs the extra dicom")
gdcm = pytest.importorskip("gdcm", reason="needs the extra dicom")


def near(read: np.ndarray, wanted: np.ndarray) -> None:
    assert np.abs(read - np.clip(wanted, 0, 1) * 255).max() <= 0.51


def test_without_a_window_the_films_own_range_decides() -> None:
    near(decode(dicom(RAMP // 2 + 100), 64, NAME), (RAMP // 2) / 2047)


def test_monochrome1_is_inverted() -> None:
    plain, inverted = (dicom(PhotometricInterpretation=f"MONOCHROME{kind}") for kind in (2, 1))
    assert np.abs(255.0 - decode(plain, 64, NAME) - decode(inverted, 64, NAME)).max() <= 1
    assert decode(inverted, 64, NAME)[0, 0] == 255


@pytest.mark.parametrize(
    ("function", "wanted"),
    [
        ("LINEAR", (RAMP - (2000 - 0.5)) / (1000 - 1) + 0.5),  # PS3.3 C.11.2.1.2.1
        ("LINEAR_EXACT", (RAMP - 2000.0) / 1000 + 0.5),
        ("SIGMOID", None),
    ],
)
def test_window(function: str, wanted: np.ndarray | None) -> None:
    content = dicom(WindowCenter=[2000, 1], WindowWidth=[1000, 5], VOILUTFunction=function)
    if wanted is None:
        wanted = 1 / (1 + np.exp(-4 * (RAMP - 2000.0) / 1000))
    near(decode(content, 64, NAME), wanted)


def test_window_is_of_values_after_the_modality_slope() -> None:
    content = dicom(RescaleSlope=2, RescaleIntercept=-1024, WindowCenter=1000, WindowWidth=3000)
    near(decode(content, 64, NAME), (RAMP * 2.0 - 1024 - 999.5) / 2999 + 0.5)


def test_signed_values() -> None:
    near(decode(dicom(RAMP.astype(np.int16) - 2048), 64, NAME), RAMP / 4095)


def test_lookup_tables() -> None:
    voi = dicom(RAMP % 4, VOILUTSequence=table(0, [0, 10, 100, 255]))
    assert set(decode(voi, 64, NAME).ravel()) == {0, 10, 100, 255}
    modality = dicom(RAMP % 4, ModalityLUTSequence=table(0, [0, 51, 102, 255]))
    assert set(decode(modality, 64, NAME).ravel()) == {0, 51, 102, 255}


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
def test_transfer_syntaxes_of_chest_films(syntax: str, tmp_path: Path) -> None:
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
    with pytest.raises(UserError, match=r"JPEG Lossless.* no decoder .*pip install 'ral\[dicom\]'") as caught:
        decode(content, 64, NAME)
    assert not isinstance(caught.value, BadFilm)  # the machine's fault: never quarantined


def test_without_pydicom(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(UserError, match=r"pydicom is not installed.*pip install 'ral\[dicom\]'"):
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
        (dicom(Rows=20000, Columns=20000), "is too large to be a film"),
        (dicom(RescaleSlope=float("inf"), RescaleIntercept=0), "has a tag that is no number"),
    ],
)
def test_what_is_no_film(content: bytes, reason: str) -> None:
    with pytest.raises(BadFilm, match=reason):
        decode(content, 64, NAME)
