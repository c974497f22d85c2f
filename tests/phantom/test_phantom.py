"""The phantom data set: its bytes, its layout, its statistics, and that each sign shows on an image."""

import gzip
import io
import tarfile
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from ral.config.data import PhantomConfig
from ral.labels import NIH_FINDINGS, PHANTOM_PREFIX
from ral.phantom.archive import write_phantom
from ral.phantom.chest import mark_corner, phantom_mark
from ral.phantom.population import (
    FINDINGS,
    PREVALENCES,
    TEST_SHARE,
    PhantomImage,
    correlation_root,
    correlations,
    draw_population,
)
from ral.phantom.portable import Random, cosine, decay, direction, enlarge, rotation
from ral.phantom.signs import PAINT, RESHAPE, draw_image
from ral.phantom.stored import Gzip, png

FILES = {
    "Data_Entry_2017.csv", "images_001.tar.gz", "train_val_list.txt", "test_list.txt", "README.txt", "BBox_List_2017.csv",
}  # fmt: skip
SMALL = PhantomConfig(images=200, size=48, floor=0.02, seed=1)
DEFAULT = PhantomConfig(images=6000, size=96, floor=0.009, seed=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("phantom")
    write_phantom(path, SMALL)
    return path


@pytest.fixture(scope="module")
def images() -> list[PhantomImage]:
    return draw_population(DEFAULT)


@pytest.fixture(scope="module")
def many() -> list[PhantomImage]:
    """Enough to count how often two rare findings meet."""
    return draw_population(DEFAULT.model_copy(update={"images": 60_000}))


def _images(folder: Path) -> dict[str, bytes]:
    with tarfile.open(folder / "images_001.tar.gz") as archive:
        members = ((member.name, archive.extractfile(member)) for member in archive)
        return {name: stream.read() for name, stream in members if stream}


def _rows(folder: Path) -> list[list[str]]:
    lines = (folder / "Data_Entry_2017.csv").read_text().splitlines()
    return [line.split(",") for line in lines[1:]]


def _lists(folder: Path) -> tuple[list[str], list[str]]:
    return (
        (folder / "train_val_list.txt").read_text().split(),
        (folder / "test_list.txt").read_text().split(),
    )


def _shares(images: list[PhantomImage], name: str) -> NDArray[np.bool_]:
    return np.array([name in image.findings or name == image.view for image in images])


# --- the folder


def test_same_config_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    done: list[int] = []
    write_phantom(tmp_path, SMALL, done.append)
    assert {path.name for path in tmp_path.iterdir()} == FILES
    assert sum(done) == SMALL.images
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes(), name


def test_another_seed_gives_other_bytes(folder: Path, tmp_path: Path) -> None:
    write_phantom(tmp_path, SMALL.model_copy(update={"seed": 2}))
    for name in FILES:
        assert (tmp_path / name).read_bytes() != (folder / name).read_bytes(), name


def test_table_has_the_layout_of_nih(folder: Path) -> None:
    header = (folder / "Data_Entry_2017.csv").read_text().splitlines()[0]
    assert header == (
        "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
        "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
    )
    rows = _rows(folder)
    assert len(rows) == SMALL.images
    expected_follow_up: dict[str, int] = {}
    for row in rows:
        name, labels, follow_up, patient, age, sex, view, width, height, _, _ = row
        assert name == f"{PHANTOM_PREFIX}{int(patient):08d}_{int(follow_up):03d}.png"
        assert int(follow_up) == expected_follow_up.get(patient, 0)
        expected_follow_up[patient] = int(follow_up) + 1
        names = labels.split("|")
        assert names == ["No Finding"] or (names == sorted(names) and set(names) <= set(NIH_FINDINGS))
        assert 1 <= int(age) <= 95
        assert sex in ("M", "F")
        assert view in ("PA", "AP")
        assert width == height == "48"


def test_lists_cover_the_table_and_share_no_patient(folder: Path) -> None:
    train_val, test = _lists(folder)
    assert sorted(train_val + test) == [row[0] for row in _rows(folder)]
    assert not {name.split("_")[0] for name in train_val} & {name.split("_")[0] for name in test}


def test_archive_holds_each_image_as_gray_png(folder: Path) -> None:
    images = _images(folder)
    assert list(images) == [f"images/{row[0]}" for row in _rows(folder)]
    for content in images.values():
        with Image.open(io.BytesIO(content)) as image:
            assert (image.format, image.mode, image.size) == ("PNG", "L", (48, 48))


def test_archive_headers_hold_no_time_and_no_owner(folder: Path) -> None:
    # Bytes 4 to 7 of a gzip header are the time; the flags in byte 3 would announce a file name.
    assert (folder / "images_001.tar.gz").read_bytes()[3:8] == bytes(5)
    with tarfile.open(folder / "images_001.tar.gz") as archive:
        heads = {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in archive}
    assert heads == {(0, 0, 0, "", "", 0o644)}


def test_readme_says_phantom(folder: Path) -> None:
    text = (folder / "README.txt").read_text()
    assert "phantom" in text
    assert "NOT X-RAYS OF PEOPLE" in text
    assert "no clinical meaning" in text


# --- arithmetic and files without a library's help


def test_cosine_decay_and_direction_are_near_the_true_ones() -> None:
    turns = np.linspace(-3, 3, 10001)
    assert np.abs(cosine(turns) - np.cos(2 * np.pi * turns)).max() < 0.0011
    values = np.linspace(0, 20, 10001)
    assert -0.018 < (decay(values) - np.exp(-values)).min() <= (decay(values) - np.exp(-values)).max() <= 0
    across, down = np.cos(2 * np.pi * turns), np.sin(2 * np.pi * turns)
    off = direction(across, down) - turns
    assert np.abs(off - np.rint(off)).max() < 0.0023
    assert rotation(1 / 12) == pytest.approx((3**0.5 / 2, 0.5), abs=0.0011)


def test_normal_numbers_are_nearly_normal() -> None:
    drawn = Random(1).normals(2, 200_000).astype(np.float64)
    assert np.array_equal(drawn * 256, np.rint(drawn * 256))
    assert drawn.mean() == pytest.approx(0, abs=0.005)
    assert drawn.std() == pytest.approx(1, abs=0.005)
    assert (drawn**4).mean() == pytest.approx(2.9, abs=0.05)
    for limit, beyond in ((1, 0.317), (2, 0.0455), (3, 0.0027)):
        assert (np.abs(drawn) > limit).mean() == pytest.approx(beyond, rel=0.3)
    assert abs(np.corrcoef(drawn)[0, 1]) < 0.01


def test_random_numbers_of_patient_image_and_sign_differ() -> None:
    """Zeros at the end of a seed count for nothing, so that no seed may end in one that means something."""
    seeds = [(1, 7), (1, 7, 1), (1, 7, 2), (1, 7, 1, 1), (1, 7, 1, 2)]
    assert len({Random(*seed).uniform() for seed in seeds}) == len(seeds)


@pytest.mark.parametrize(("cells", "size"), [(3, 96), (12, 48), (40, 96)])
def test_enlarging_is_cubic_interpolation(cells: int, size: int) -> None:
    values = Random(1).normals(cells, cells)
    peer = Image.fromarray(values).resize((size, size), Image.Resampling.BICUBIC)
    # Near the borders Pillow gives more weight to what is inside.
    inner = slice(2 * size // cells, -2 * size // cells)
    assert np.abs(enlarge(values, size) - np.asarray(peer))[inner, inner].max(initial=0) < 1e-5
    assert enlarge(np.ones((cells, cells), np.float32), size) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("shape", [(1, 1), (48, 200), (300, 300)])
def test_png_is_read_as_it_was_written(shape: tuple[int, int]) -> None:
    gray = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    with Image.open(io.BytesIO(png(gray))) as image:
        image.verify()
    with Image.open(io.BytesIO(png(gray))) as image:
        assert np.array_equal(np.asarray(image), gray)


def test_gzip_is_read_as_it_was_written(tmp_path: Path) -> None:
    parts = [b"", b"a", bytes(range(256)) * 1000, b"z" * 65535]
    with (tmp_path / "a.gz").open("wb") as stream, Gzip(stream) as packed:
        for part in parts:
            packed.write(part)
    assert gzip.decompress((tmp_path / "a.gz").read_bytes()) == b"".join(parts)


# --- the population


def test_correlations_can_be_sampled() -> None:
    matrix = correlations()
    assert np.array_equal(matrix, matrix.T)
    assert np.linalg.eigvalsh(matrix).min() > 0
    assert np.allclose(correlation_root(), np.linalg.cholesky(matrix), atol=1e-12)


def test_prevalences_follow_nih_and_the_floor(images: list[PhantomImage]) -> None:
    for name, prevalence in zip(FINDINGS, PREVALENCES, strict=False):
        assert _shares(images, name).sum() == round(max(prevalence, DEFAULT.floor) * DEFAULT.images), name
    assert np.mean([not image.findings for image in images]) == pytest.approx(0.538, abs=0.04)
    assert np.mean([len(image.findings) > 1 for image in images]) == pytest.approx(0.185, abs=0.03)


@pytest.mark.parametrize(
    ("one", "other", "least", "most"),
    [
        ("Emphysema", "Pneumothorax", 2, 20),
        ("Effusion", "Atelectasis", 1.5, 5),
        ("Edema", "Pneumonia", 4, 40),
        ("Edema", "AP", 1.5, 2.5),
        ("Fibrosis", "AP", 0, 0.8),
        ("Edema", "Emphysema", 0, 0.7),
    ],
)
def test_findings_occur_together_as_in_nih(
    many: list[PhantomImage], one: str, other: str, least: float, most: float
) -> None:
    a, b = _shares(many, one), _shares(many, other)
    assert least < (a & b).mean() / (a.mean() * b.mean()) < most


def test_patients_have_several_images_and_keep_their_findings(images: list[PhantomImage]) -> None:
    counts = np.bincount([image.patient for image in images])[1:]
    assert counts.min() == 1
    assert counts.max() == 12
    assert np.mean(counts == 1) == pytest.approx(0.568, abs=0.04)
    pairs = [(a, b) for a, b in pairwise(images) if a.patient == b.patient]
    assert all(a.age <= b.age and a.sex == b.sex for a, b in pairs)
    again = ["Effusion" in b.findings for a, b in pairs if "Effusion" in a.findings]
    assert np.mean(again) > 2 * _shares(images, "Effusion").mean()


def test_each_finding_has_its_share_in_the_test_list(images: list[PhantomImage]) -> None:
    in_test = np.array([image.test for image in images])
    assert in_test.mean() == pytest.approx(TEST_SHARE, abs=0.005)
    for name in FINDINGS:
        assert in_test[_shares(images, name)].mean() == pytest.approx(TEST_SHARE, abs=0.05), name


@pytest.mark.parametrize("seed", range(5))
def test_each_finding_is_in_both_lists_of_a_small_set(seed: int) -> None:
    images = draw_population(PhantomConfig(images=200, size=48, floor=0.009, seed=seed))
    for name in FINDINGS:
        positives = [image for image in images if name in image.findings]
        assert len(positives) >= 6, name
        assert len({image.patient for image in positives}) >= 5, name
        assert {image.test for image in positives} == {True, False}, name


# --- the images


def _image(patient: int, *findings: str) -> PhantomImage:
    return PhantomImage(patient, follow_up=0, age=50, sex="F", view="PA", findings=findings, test=False)


def _change(patient: int, finding: str) -> NDArray[np.float64]:
    """What a finding changes on an otherwise equal image of 96 x 96."""
    healthy, ill = draw_image(_image(patient), 96, 1), draw_image(_image(patient, finding), 96, 1)
    return ill.astype(np.float64) - healthy


def test_every_finding_has_a_sign() -> None:
    assert set(RESHAPE) | set(PAINT) == set(NIH_FINDINGS) == set(FINDINGS)


@pytest.mark.parametrize("finding", FINDINGS)
def test_sign_shows_on_every_image_within_the_thorax(finding: str) -> None:
    for patient in range(1, 9):
        change = np.abs(_change(patient, finding))
        assert (change > 15).sum() >= 12, patient
        # Neither the corners above the shoulders nor the mark take part.
        assert change[:8, :20].max() == 0
        assert change[:8, -20:].max() == 0
        assert change[-11:, 30:66].max() == 0


@pytest.mark.parametrize(
    ("finding", "rows", "columns", "brighter"),
    [
        ("Cardiomegaly", slice(50, 68), slice(60, 80), True),
        ("Edema", slice(38, 58), slice(20, 76), True),
        ("Effusion", slice(60, 76), slice(8, 88), True),
        ("Emphysema", slice(70, 78), slice(20, 76), False),
        ("Fibrosis", slice(50, 70), slice(12, 84), True),
        ("Pleural_Thickening", slice(30, 60), slice(8, 88), True),
        ("Pneumothorax", slice(14, 30), slice(18, 78), False),
    ],
)
def test_sign_is_where_it_should_be(finding: str, rows: slice, columns: slice, brighter: bool) -> None:
    changes = np.mean([_change(patient, finding) for patient in range(1, 17)], axis=0)
    here = changes[rows, columns].mean()
    assert (here > 0) == brighter
    assert abs(here) > 1.5 * abs(changes.mean())


def test_image_depends_on_nothing_drawn_before_it() -> None:
    image = _image(7, "Mass", "Nodule")
    alone = draw_image(image, 64, 1)
    draw_image(_image(8, "Edema"), 64, 1)
    assert np.array_equal(draw_image(image, 64, 1), alone)
    assert not np.array_equal(draw_image(replace(image, follow_up=1), 64, 1), alone)
    assert not np.array_equal(draw_image(image, 64, 2), alone)


def test_images_of_a_patient_resemble_each_other() -> None:
    """Two images of one patient differ less than images of two patients, on average."""
    own, others = [], []
    for patient in range(1, 31):
        image = draw_image(_image(patient), 64, 1).astype(float)
        own.append(np.abs(image - draw_image(replace(_image(patient), follow_up=1), 64, 1)).mean())
        others.append(np.abs(image - draw_image(_image(patient + 100), 64, 1)).mean())
    assert np.mean(own) < np.mean(others)


@pytest.mark.parametrize("size", [48, 96, 200])
def test_every_image_carries_the_mark(size: int) -> None:
    mark, (top, left) = phantom_mark(size), mark_corner(size)
    assert set(np.unique(mark)) == {0, 255}
    for findings in ((), FINDINGS):
        image = draw_image(_image(3, *findings), size, 1)
        assert image.shape == (size, size)
        assert image.dtype == np.uint8
        assert np.array_equal(image[top : top + mark.shape[0], left : left + mark.shape[1]], mark)
