"""Arrays of a NumPy archive: read row by row, and nothing is believed that the archive only claims."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ral.data.images import npz
from ral.errors import UserError

IMAGES = np.random.default_rng(0).integers(0, 256, (7, 5, 9), dtype=np.uint8)


def header(shape: tuple[int, ...], dtype: str = "|u1", order: bool = False) -> bytes:
    """The head of a .npy file that claims a shape."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": dtype, "fortran_order": order, "shape": shape})
    return stream.getvalue()


def archive(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as written:
        for name, content in members.items():
            written.writestr(f"{name}.npy", content)
    return path


@pytest.fixture(params=[np.savez, np.savez_compressed], ids=["stored", "compressed"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "a.npz"
    request.param(path, images=IMAGES, more=IMAGES[::-1], labels=np.arange(6).reshape(3, 2))
    return path


def decoded(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


def test_shape_and_values(path: Path) -> None:
    assert npz.array_shape(path, "images.npy") == ((7, 5, 9), np.dtype(np.uint8))
    assert npz.read_array(path, "labels.npy").tolist() == [[0, 1], [2, 3], [4, 5]]


def test_wanted_images_come_as_png_in_order(path: Path) -> None:
    wanted = ["images.npy[0]", "images.npy[3]", "images.npy[6]", "more.npy[1]"]
    read = [decoded(png) for png in npz.read_images(path, wanted)]
    for pixels, expected in zip(read, [*IMAGES[[0, 3, 6]], IMAGES[5]], strict=True):
        assert (pixels == expected).all()


def test_of_one_array_only_the_rows_up_to_the_last_are_read(tmp_path: Path) -> None:
    """Rows behind are missing here: who needs them is told, who does not is not."""
    whole = header((7, 5, 9)) + IMAGES.tobytes()
    path = archive(tmp_path / "a.npz", images=whole)
    content = bytearray(path.read_bytes())
    content[content.index(b"images.npy") + 120] ^= 0xFF  # within the compressed data
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.npz"):
        list(npz.read_images(path, ["images.npy[6]"]))


def test_version_2_headers(tmp_path: Path) -> None:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, IMAGES, version=(2, 0))
    path = archive(tmp_path / "a.npz", images=stream.getvalue())
    (png,) = npz.read_images(path, ["images.npy[2]"])
    assert (decoded(png) == IMAGES[2]).all()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"no array", "is not a NumPy array"),
        (header((7, 5, 9)), "claims 443 bytes, has 128 according to the archive"),
        (header((7, 5, 9)) + IMAGES.tobytes()[:-1], "claims 443 bytes, has 442"),
        (header((7, 5, 9), order=True) + IMAGES.tobytes(), "column-major"),
        (header((1,), "|O") + b"x" * 8, "contains Python objects"),
        (header((7, 5), "<f8") + bytes(280), r"has shape \(7, 5\) and type float64, not 8-bit gray"),
        (header((2, 0, 5)), r"has shape \(2, 0, 5\)"),
    ],
    ids=["no array", "values missing", "a byte missing", "columns first", "objects", "other type", "empty"],
)
def test_what_is_no_array_of_images_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    path = archive(tmp_path / "a.npz", images=content)
    with pytest.raises(UserError, match=words):
        list(npz.read_images(path, ["images.npy[0]"]))


def test_a_small_file_that_claims_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Zeros, compressed a thousandfold: a bomb."""
    path = archive(tmp_path / "a.npz", images=header((4, 1024, 1024)) + bytes(4 << 20))
    assert npz.array_shape(path, "images.npy")[0] == (4, 1024, 1024)  # small enough to be harmless
    monkeypatch.setattr(npz, "EXPANSION_CHECK_BYTES", 1 << 20)
    with pytest.raises(UserError, match="claims 4194432 bytes"):
        npz.array_shape(path, "images.npy")


def test_labels_have_a_limit(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(npz, "MAX_ARRAY_BYTES", 6 * 8 - 1)
    with pytest.raises(UserError, match=r"labels\.npy has 48 bytes, too many"):
        npz.read_array(path, "labels.npy")


def test_an_array_that_is_not_there_is_answered_by_those_that_are(path: Path) -> None:
    with pytest.raises(
        UserError, match=r"has no array x\.npy; it contains images\.npy, more\.npy, labels\.npy"
    ):
        npz.read_array(path, "x.npy")


def test_a_truncated_archive_is_named(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UserError, match=r"a\.npz is truncated or damaged"):
        npz.array_shape(path, "images.npy")


def claiming(folder: Path, shape: tuple[int, ...], data: bytes) -> Path:
    """An archive of an array that claims a shape."""
    return archive(folder / "a.npz", a=header(shape) + data)


@pytest.mark.parametrize("shape", [(10**12,), (10**9, 28, 28), (2, 10**6, 10**6), (-1, 28, 28), (3, 28, 28)])
def test_array_that_claims_what_is_not_there(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = claiming(tmp_path, shape, bytes(2 * 28 * 28))
    for read in (npz.array_shape, npz.read_array):
        with pytest.raises(UserError, match=r"a\.npz: a\.npy claims -?\d+ bytes, has"):
            read(path, "a.npy")
    with pytest.raises(UserError, match=r"a\.npz: a\.npy "):
        next(npz.read_images(path, ["a.npy[0]"]))


def test_labels_of_too_many_bytes(tmp_path: Path) -> None:
    path = claiming(tmp_path, (300 << 20,), bytes(300 << 20))
    with pytest.raises(UserError, match=r"a\.npy has 314572800 bytes, too many for labels"):
        npz.read_array(path, "a.npy")


def test_damaged_array_is_named(tmp_path: Path) -> None:
    path = claiming(
        tmp_path, (4000,), np.random.default_rng(0).integers(0, 256, 4000, dtype=np.uint8).tobytes()
    )
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.npz is truncated or damaged"):
        npz.read_array(path, "a.npy")
