"""An image that is missing: the name that was looked for, and the nearest that lies there."""

import os
import tarfile
import unicodedata
import zipfile
from pathlib import Path

import pandas as pd
import pytest

from ral.data.images.locate import list_images
from ral.data.validation import missing_images as nearest
from ral.data.validation.missing_images import describe_missing

NONE = pd.DataFrame({"path": pd.Series(dtype="str"), "member": pd.Series(dtype="str")})


def put(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"image")


def by_name(root: Path, wanted: str) -> str:
    (text,) = describe_missing(root, [wanted], NONE, by_path=False)
    assert text.isprintable()
    return text


def by_path(root: Path, wanted: str) -> str:
    (text,) = describe_missing(root, [wanted], NONE, by_path=True)
    assert text.isprintable()
    return text


NFC, NFD = (unicodedata.normalize(form, "Röntgen_1.png") for form in ("NFC", "NFD"))


@pytest.mark.parametrize(("there", "wanted", "text"), [
    ("images/1_000.PNG", "1_000.png", "looked for images/1_000.png; there is images/1_000.PNG (capital ending)"),
    ("images/1_000.png", "1_000.PNG", "there is images/1_000.png (the table has a capital ending)"),
    ("images/1_000.jpg", "1_000.png", "there is images/1_000.jpg (its ending is .jpg)"),
    ("images/1_000.tif", "1_000.png", "1_000.tif (its ending is .tif, .tif is not read: save it as PNG)"),
    ("images/1_000.png.gz", "1_000.png", "(its ending is .png.gz, .png.gz is not read: unpack it)"),
    ("images/1_000.png", "1_000", "there is images/1_000.png (the table's ids need the ending .png)"),
    ("images/1_000.dicom", "1_000", "the table's ids need the ending .dicom"),
    ("images/IM0001", "IM0001.dcm", "there is images/IM0001 (without ending .dcm)"),
    ("images/A_1.png", "a_1.png", "there is images/A_1.png (capital and small letters differ)"),
    ("images/A_1.PNG", "a_1.png", "(capital ending, capital and small letters differ)"),
    (f"images/{NFD}", NFC, "(other Unicode form of the same letters)"),
    (f"images/{NFC}", NFD, "(other Unicode form of the same letters)"),
    ("images/1_000.png", " 1_000.png ", "there is images/1_000.png (the table has blanks around it)"),
    ("images/1_000 .png", "1_000.png", "there is images/1_000 .png (blanks in the file's name)"),
    ("images/00001_000.png", "1_000.png", "there is images/00001_000.png (zeros in front differ)"),
    ("images/1_000.png", "00001_000.png", "there is images/1_000.png (zeros in front differ)"),
    ("images/1_000.png", "images/1_000.png", "(image ids are names of files, without folders)"),
    ("images/1_000.png", "x\\1_000.png", "(the path is written with backslashes: write /, image ids are names"),
    ("images/a/b/1_000.png", "1_000.png", "there is images/a/b/1_000.png (one folder deeper than is looked"),
    ("train/1_000.png", "1_000.png", "looked for 1_000.png; there is train/1_000.png (images are looked for in images/"),
    ("images/x.png", "1_000.png", "nothing like it is there; of 1 images the first is images/x.png"),
    ("images/x.txt", "1_000.png", "no image is there"),
    ("images/x.png", " ", "the cell is empty"),
    ("data.zip", "1_000.png", "no image is there; data.zip is not looked into: unpack it"),
])  # fmt: skip
def test_by_name(tmp_path: Path, there: str, wanted: str, text: str) -> None:
    put(tmp_path, there)
    assert text in by_name(tmp_path, wanted)


@pytest.mark.parametrize(("wanted", "text"), [
    ("images\\f0.png", "looked for images\\f0.png; there is images/f0.png (the path is written with backslashes: write /)"),
    ("C:\\data\\images\\f0.png", "there is images/f0.png (the path is written with backslashes: write /, write the path"),
    ("/data/images/f0.png", "there is images/f0.png (write the path below data.root)"),
    ("../images/f0.png", "(the path leads out with ..)"),
    ("set/images/f0.png", "there is images/f0.png (without set/ in front)"),
    ("a/set/images/f0.png", "(without a/set/ in front)"),
    ("./set/images/f0.png", "(without set/ in front)"),
    ("f0.png", "there is images/f0.png (one folder deeper)"),
    ("Images/f0.png", "there is images/f0.png (capital and small letters of the folders differ)"),
    ("other/f0.png", "there is images/f0.png (in another folder)"),
    ("images/f0", "there is images/f0.png (the table's ids need the ending .png)"),
    ("images/f0.jpg", "there is images/f0.png (its ending is .png)"),
    ("./images/f0.PNG", "there is images/f0.png (the table has a capital ending)"),
    (" images/f0.png", "there is images/f0.png (the table has blanks around it)"),
    ("images/f7.png", "nothing like it is there; of 1 images the first is images/f0.png"),
    ("", "looked for ; the cell is empty"),
    ("images", "images is a folder"),
    ("x" * 5000, "nothing like it is there"),
    ("images/a\nb.png", "looked for images/a\\nb.png; nothing like it"),
])  # fmt: skip
def test_by_path(tmp_path: Path, wanted: str, text: str) -> None:
    put(tmp_path, "images/f0.png")
    assert text in by_path(tmp_path, wanted)


def test_deeper_by_more_than_one_folder(tmp_path: Path) -> None:
    put(tmp_path, "a/b/images/f0.png")
    assert "there is a/b/images/f0.png (2 folders deeper)" in by_path(tmp_path, "images/f0.png")


def test_a_name_that_many_images_have_says_nothing(tmp_path: Path) -> None:
    put(tmp_path, "train/p1/view1.jpg", "train/p2/view1.jpg", "valid/p3/view1.jpg")
    assert "nothing like it is there; of 3 images" in by_path(tmp_path, "train/p9/view1.jpg")
    assert "there is valid/p3/view1.jpg (without set/ in front)" in by_path(
        tmp_path, "set/valid/p3/view1.jpg"
    )


def test_the_nearest_of_several_is_named(tmp_path: Path) -> None:
    put(tmp_path, "images/A.jpg", "images/a.jpeg", "images/a.PNG", "images/sub/a.jpg")
    assert "there is images/a.PNG (capital ending); 3 more are like it" in by_name(tmp_path, "a.png")


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_members_of_archives_count(tmp_path: Path, kind: str) -> None:
    put(tmp_path, "a.PNG")
    if kind == "tar":
        with tarfile.open(tmp_path / "images.tar", "w") as tar:
            tar.add(tmp_path / "a.PNG", "images/a.PNG")
    else:
        with zipfile.ZipFile(tmp_path / "images.zip", "w") as packed:
            packed.write(tmp_path / "a.PNG", "images/a.PNG")
    (tmp_path / "a.PNG").unlink()
    images, _ = list_images(tmp_path, lambda _: None)
    (text,) = describe_missing(tmp_path, ["a.png"], images, by_path=False)
    assert text == f"looked for a.png; there is images/a.PNG in images.{kind} (capital ending)"


def test_archive_beside_a_table_of_paths(tmp_path: Path) -> None:
    put(tmp_path, "images.zip")
    assert by_path(tmp_path, "images/a.png").endswith(
        "no image is there; images.zip is not looked into: unpack it"
    )


def test_what_stands_there_but_is_no_file(tmp_path: Path) -> None:
    put(tmp_path, "images/x.png")
    (tmp_path / "images/a.png").symlink_to("/gone/a.png")
    (tmp_path / "images/b.png").symlink_to("b.png")
    os.mkfifo(tmp_path / "images/c.png")
    (tmp_path / "images/d.png").mkdir()
    texts = describe_missing(tmp_path, ["a.png", "b.png", "c.png", "d.png"], NONE, by_path=False)
    assert [text.partition("; ")[2] for text in texts] == [
        "images/a.png is a link to /gone/a.png, which is no file that can be read",
        "images/b.png is a link to b.png, which is no file that can be read",
        "images/c.png is a pipe or a device, not a file",
        "images/d.png is a folder",
    ]
    assert "images/c.png is a pipe" in by_path(tmp_path, "images/c.png")


def test_the_folder_is_walked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "images/a.PNG", "images/b.PNG")
    walks = []
    real = nearest.walk
    monkeypatch.setattr(nearest, "walk", lambda root: walks.append(root) or real(root))
    assert len(describe_missing(tmp_path, ["a.png", "b.png", "c.png"], NONE, by_path=False)) == 3
    assert walks == [tmp_path]
    assert describe_missing(tmp_path, [], NONE, by_path=False) == []
    assert len(walks) == 1
