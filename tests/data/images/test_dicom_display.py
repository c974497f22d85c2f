"""What a screen shows of a DICOM image: padding, slopes, lookup tables, windows, polarity."""

import struct
from typing import Any

import numpy as np
import pytest
from dicom_files import NAME, RAMP, dicom, explicit, near, pydicom, rewritten, table

from ral.data.images.bad_image import BadImage
from ral.data.images.decode import decode, decode_with_note


def test_without_a_window_the_images_own_range_decides() -> None:
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


INTERIOR = np.s_[:, 16:]


def padded(values: np.ndarray, padding: int) -> np.ndarray:
    values = values.copy()
    values[:, :16] = padding
    return values


SIGNED, UNSIGNED = RAMP.astype(np.int16) - 2048, RAMP // 2 + 1000
PADDED: dict[str, tuple[np.ndarray, int, dict[str, Any]]] = {
    "inside the range": (UNSIGNED, 2000, {"PixelPaddingValue": 2000}),
    "far below": (SIGNED, -32768, {"PixelPaddingValue": -32768}),
    "far above": (UNSIGNED, 65535, {"PixelPaddingValue": 65535}),
    "a range": (SIGNED, -30000, {"PixelPaddingValue": -32768, "PixelPaddingRangeLimit": -29000}),
    "a range from above": (SIGNED, -30000, {"PixelPaddingValue": -29000, "PixelPaddingRangeLimit": -32768}),
    "none there": (UNSIGNED, 1001, {"PixelPaddingValue": 40000}),
}


@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("name", PADDED)
def test_padding_is_black_and_no_part_of_the_own_range(name: str, kind: str) -> None:
    values, padding, tags = PADDED[name]
    read = decode(dicom(padded(values, padding), 16, PhotometricInterpretation=kind, **tags), 64, NAME)
    real = values[INTERIOR].astype(float)
    if name == "inside the range":
        real = np.where(real == padding, np.nan, real)
    low, high = np.nanmin(real), np.nanmax(real)
    if name == "none there":
        low = 1001
    wanted = np.nan_to_num((real - low) / (high - low), nan=0 if kind == "MONOCHROME2" else 1)
    near(read[INTERIOR], wanted if kind == "MONOCHROME2" else 1 - wanted)
    if name != "none there":
        assert not read[:, :16].any()


@pytest.mark.parametrize("signed", [True, False])
def test_padding_written_with_the_other_sign(signed: bool) -> None:
    """63536 as US stands for -2000 in a signed image, and -2000 as SS for 63536 in an unsigned one."""
    values = SIGNED // 2 if signed else UNSIGNED
    content = dicom(
        padded(values, -2000 if signed else 63536), 16, PixelPaddingValue=-2000 if signed else 63536
    )
    value = struct.pack("<H", 63536)
    content = rewritten(content, 0x00280120, explicit(0x00280120, b"US" if signed else b"SS", value))
    real = values[INTERIOR].astype(float)
    read = decode(content, 64, NAME)
    near(read[INTERIOR], (real - real.min()) / (real.max() - real.min()))
    assert not read[:, :16].any()


def test_padding_beyond_the_bits_that_are_used() -> None:
    """12 bits are used, and padding has all sixteen."""
    content = dicom(padded(UNSIGNED, 0xF830), 12, PixelPaddingValue=0xF830)
    real = UNSIGNED[INTERIOR].astype(float)
    read = decode(content, 64, NAME)
    near(read[INTERIOR], (real - real.min()) / (real.max() - real.min()))
    assert not read[:, :16].any()


@pytest.mark.parametrize(("kind", "wanted"), [("MONOCHROME2", 0.75), ("MONOCHROME1", 0.25)])
def test_padding_with_slope_and_window(kind: str, wanted: float) -> None:
    values = np.full((64, 64), 3000, np.uint16)
    values[0] = 3500
    values = padded(values, 0)
    tags = {"RescaleSlope": -1, "RescaleIntercept": 4000, "WindowCenter": 750, "WindowWidth": 1000}
    content = dicom(
        values, PixelPaddingValue=0, VOILUTFunction="LINEAR_EXACT", PhotometricInterpretation=kind, **tags
    )
    read = decode(content, 64, NAME)
    assert (read[1:, 16:] == round(wanted * 255)).all()
    assert not read[:, :16].any()


def test_averages_at_the_edge_of_padding_are_those_of_a_black_background() -> None:
    values = np.full((64, 64), 4000, np.uint16)
    values[:, ::2] = 3000
    values[:, :15] = 0
    read = decode(dicom(values, PixelPaddingValue=0), 32, NAME)
    assert set(read[:, :7].ravel()) == {0}
    assert set(read[:, 7]) == {128}  # padding beside a pixel of 4000, which is white
    assert set(read[:, 8:].ravel()) == {128}  # of 3000 and 4000


@pytest.mark.parametrize("value", [7, 0])
def test_nothing_but_padding(value: int) -> None:
    with pytest.raises(BadImage, match=r"is blank \(every pixel is padding\)"):
        decode(dicom(np.full((64, 64), value, np.uint16), PixelPaddingValue=value), 64, NAME)


def test_one_value_beside_padding_is_blank() -> None:
    with pytest.raises(BadImage, match=r"is blank \(every pixel is 900\)"):
        decode(dicom(padded(np.full((64, 64), 900, np.uint16), 0), PixelPaddingValue=0), 64, NAME)


LUT_TABLES: dict[str, tuple[np.ndarray, dict[str, Any]]] = {
    "12 bits that say 16": (np.arange(4096), {"bits": 16}),
    "entries that begin at 1000": (np.arange(4096) + 1000, {"bits": 16}),
    "falling": (np.arange(4096)[::-1], {"bits": 12}),
    "65,536 entries": (np.minimum(np.arange(65536), 4095), {"bits": 16}),
    "first value above 0": (np.arange(3000), {"bits": 12, "first": 500}),
}


@pytest.mark.parametrize("name", LUT_TABLES)
def test_lookup_table_reaches_from_black_to_white(name: str) -> None:
    entries, tags = LUT_TABLES[name]
    first = tags.get("first", 0)
    shown = entries[np.clip(RAMP.astype(int) - first, 0, len(entries) - 1)].astype(float)
    wanted = (shown - entries.min()) / (entries.max() - entries.min())
    near(decode(dicom(VOILUTSequence=table(first, list(entries), tags["bits"])), 64, NAME), wanted)


def packed_table(length: int, entries: bytes, representation: str = "OW") -> Any:
    sequence = table(0, [0, 1])
    sequence[0].LUTDescriptor, sequence[0].LUTData = [length, 0, 8], entries
    sequence[0]["LUTData"].VR = representation
    return sequence


def test_lookup_table_of_bytes() -> None:
    """Entries of 8 bits, two to a word."""
    entries = bytes([0, 10, 100, 255])
    read = decode(dicom(RAMP % 4, VOILUTSequence=packed_table(4, entries)), 64, NAME)
    assert set(read.ravel()) == {0, 10, 100, 255}
    odd = decode(dicom(RAMP % 3, VOILUTSequence=packed_table(3, bytes([0, 10, 255, 0]))), 64, NAME)
    assert set(odd.ravel()) == {0, 10, 255}


@pytest.mark.parametrize("signed_pixels", [True, False])
def test_first_value_of_a_table_may_be_negative(signed_pixels: bool) -> None:
    """It is a signed number even where it is written as an unsigned one, as 65036 for -500."""
    values = np.tile(np.arange(-500, -436, dtype=np.int16), (64, 1))
    tags: dict[str, Any] = {"VOILUTSequence": table(0, list(range(64)), 16)}
    if not signed_pixels:
        values, tags["RescaleIntercept"], tags["RescaleSlope"] = (values + 1000).astype(np.uint16), -1000, 1
    content = dicom(values, 16, **tags)
    for written in (struct.pack("<HhH", 64, -500, 16), struct.pack("<HHH", 64, 65036, 16)):
        for representation in (b"US", b"SS"):
            changed = rewritten(content, 0x00283002, explicit(0x00283002, representation, written))
            near(decode(changed, 64, NAME), np.tile(np.arange(64) / 63, (64, 1)))


def test_lookup_table_cut_short() -> None:
    with pytest.raises(BadImage, match=r"has a lookup table that is cut short \(2 of 256 entries\)"):
        decode(dicom(VOILUTSequence=packed_table(256, bytes([0, 255]))), 64, NAME)


WINDOWED = (RAMP - 999.5) / 2999 + 0.5
OWN = RAMP / 4095
EMPTY: dict[str, tuple[dict[str, Any], np.ndarray]] = {
    "item without data": ({"VOILUTSequence": [pydicom.Dataset()]}, WINDOWED),
    "no item": ({"VOILUTSequence": []}, WINDOWED),
    "table without entries": ({"VOILUTSequence": packed_table(4, b"")}, WINDOWED),
    "first item without data": ({"VOILUTSequence": [pydicom.Dataset(), *table(0, [*range(4096)])]}, OWN),
    "modality item without data": ({"ModalityLUTSequence": [pydicom.Dataset()]}, WINDOWED),
    "slope": ({"RescaleSlope": "", "RescaleIntercept": ""}, WINDOWED),
    "function": ({"VOILUTFunction": ""}, WINDOWED),
    "padding": ({"PixelPaddingValue": None, "PixelPaddingRangeLimit": None}, WINDOWED),
    "padding range alone": ({"PixelPaddingRangeLimit": 2000}, WINDOWED),
    "frames": ({"NumberOfFrames": ""}, WINDOWED),
    "shape": ({"PresentationLUTShape": ""}, WINDOWED),
    "center": ({"WindowCenter": ""}, OWN),
    "width": ({"WindowWidth": ""}, OWN),
    "center and width": ({"WindowCenter": "", "WindowWidth": ""}, OWN),
}


@pytest.mark.parametrize("name", EMPTY)
def test_an_empty_tag_is_as_if_absent(name: str) -> None:
    tags, wanted = EMPTY[name]
    near(decode(dicom(**{"WindowCenter": 1000, "WindowWidth": 3000, **tags}), 64, NAME), wanted)


def text_tag(content: bytes, tag: int, text: bytes) -> bytes:
    return rewritten(content, tag, explicit(tag, b"DS", text + b" " * (len(text) % 2)))


@pytest.mark.parametrize("text", [b"1000,0", b"1000.0", b" 1000,0\\7", b"1e3", b"1000\0"])
def test_window_with_a_decimal_comma(text: bytes) -> None:
    content = dicom(WindowCenter=1, WindowWidth=3000)
    near(decode(text_tag(content, 0x00281050, text), 64, NAME), WINDOWED)


@pytest.mark.parametrize(("tag", "keyword"), [(0x00281050, "WindowCenter"), (0x00281053, "RescaleSlope")])
@pytest.mark.parametrize("text", [b"soft", b"1.000,5", b"nan", b"inf", b"1 000"])
def test_tag_that_is_no_number(tag: int, keyword: str, text: bytes) -> None:
    content = dicom(WindowCenter=1, WindowWidth=3000, RescaleSlope=1, RescaleIntercept=0)
    with pytest.raises(BadImage, match=f"has a tag that is no number .{keyword} '{text.decode()}'"):
        decode(text_tag(content, tag, text), 64, NAME)


@pytest.mark.parametrize(
    ("kind", "shape", "dark", "note"),
    [
        ("MONOCHROME2", "IDENTITY", False, ""),
        ("MONOCHROME1", "INVERSE", True, ""),
        ("MONOCHROME2", "INVERSE", True, "polarity"),
        ("MONOCHROME1", "IDENTITY", False, "polarity"),
        ("MONOCHROME1", "LIN OD", True, ""),
    ],
)
def test_presentation_lut_shape_decides(kind: str, shape: str, dark: bool, note: str) -> None:
    content = dicom(
        PhotometricInterpretation=kind, PresentationLUTShape=shape, WindowCenter=1000, WindowWidth=3000
    )
    read, told = decode_with_note(content, 64, NAME)
    near(read, 1 - np.clip(WINDOWED, 0, 1) if dark else WINDOWED)
    assert told == note


def test_bits_that_are_not_used_are_ignored() -> None:
    """Old scanners keep an overlay in the upper bits."""
    values = RAMP | np.where(RAMP % 3 == 0, 0x8000, 0).astype(np.uint16)
    near(decode(dicom(values), 64, NAME), OWN)
    signed = ((RAMP.astype(np.int16) - 2048) & 0x0FFF).astype(np.int16)
    near(decode(dicom(signed), 64, NAME), OWN)
