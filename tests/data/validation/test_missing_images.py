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
    ("images/1_000.PNG", "1_000.png", "looked for images/1_000.png; found images/1_000.PNG (upper-case extension)"),
    ("images/1_000.png", "1_000.PNG", "found images/1_000.png (upper-case extension in the table)"),
    ("images/1_000.jpg", "1_000.png", "found images/1_000.jpg (extension .jpg)"),
    ("images/1_000.tif", "1_000.png", "1_000.tif (extension .tif, .tif is not supported: convert it to PNG)"),
    ("images/1_000.png.gz", "1_000.png", "(extension .png.gz, .png.gz is not supported: unpack it)"),
    ("images/1_000.png", "1_000", "found images/1_000.png (add the extension .png to the ids in the table)"),
    ("images/1_000.dicom", "1_000", "add the extension .dicom to the ids in the table"),
    ("images/IM0001", "IM0001.dcm", "found images/IM0001 (no extension .dcm)"),
    ("images/A_1.png", "a_1.png", "found images/A_1.png (upper and lower case differ)"),
    ("images/A_1.PNG", "a_1.png", "(upper-case extension, upper and lower case differ)"),
    (f"images/{NFD}", NFC, "(different Unicode normalization)"),
    (f"images/{NFC}", NFD, "(different Unicode normalization)"),
    ("images/1_000.png", " 1_000.png ", "found images/1_000.png (spaces around the name in the table)"),
    ("images/1_000 .png", "1_000.png", "found images/1_000 .png (spaces around the file name)"),
    ("images/00001_000.png", "1_000.png", "found images/00001_000.png (leading zeros differ)"),
    ("images/1_000.png", "00001_000.png", "found images/1_000.png (leading zeros differ)"),
    ("images/1_000.png", "images/1_000.png", "(image ids are file names, without folders)"),
    ("images/1_000.png", "x\\1_000.png", "(backslashes in the path: use /, image ids are file names"),
    ("images/a/b/1_000.png", "1_000.png", "found images/a/b/1_000.png (one folder deeper than searched"),
    ("train/1_000.png", "1_000.png", "looked for 1_000.png; found train/1_000.png (images are searched for in images/"),
    ("images/x.png", "1_000.png", "no similar file found; the first of 1 images is images/x.png"),
    ("images/x.txt", "1_000.png", "no images found"),
    ("images/x.png", " ", "the cell is empty"),
    ("data.zip", "1_000.png", "no images found; data.zip is not searched: unpack it"),
])  # fmt: skip
def test_by_name(tmp_path: Path, there: str, wanted: str, text: str) -> None:
    put(tmp_path, there)
    assert text in by_name(tmp_path, wanted)


@pytest.mark.parametrize(("wanted", "text"), [
    ("images\\f0.png", "looked for images\\f0.png; found images/f0.png (backslashes in the path: use /)"),
    ("C:\\data\\images\\f0.png", "found images/f0.png (backslashes in the path: use /, make the path"),
    ("/data/images/f0.png", "found images/f0.png (make the path relative to data.root)"),
    ("../images/f0.png", "(the path leaves the data folder through ..)"),
    ("set/images/f0.png", "found images/f0.png (without the prefix set/)"),
    ("a/set/images/f0.png", "(without the prefix a/set/)"),
    ("./set/images/f0.png", "(without the prefix set/)"),
    ("f0.png", "found images/f0.png (one folder deeper)"),
    ("Images/f0.png", "found images/f0.png (upper and lower case of the folders differ)"),
    ("other/f0.png", "found images/f0.png (in another folder)"),
    ("images/f0", "found images/f0.png (add the extension .png to the ids in the table)"),
    ("images/f0.jpg", "found images/f0.png (extension .png)"),
    ("./images/f0.PNG", "found images/f0.png (upper-case extension in the table)"),
    (" images/f0.png", "found images/f0.png (spaces around the name in the table)"),
    ("images/f7.png", "no similar file found; the first of 1 images is images/f0.png"),
    ("", "looked for ; the cell is empty"),
    ("images", "images is a folder"),
    ("x" * 5000, "no similar file found"),
    ("images/a\nb.png", "looked for images/a\\nb.png; no similar file"),
])  # fmt: skip
def test_by_path(tmp_path: Path, wanted: str, text: str) -> None:
    put(tmp_path, "images/f0.png")
    assert text in by_path(tmp_path, wanted)


def test_deeper_by_more_than_one_folder(tmp_path: Path) -> None:
    put(tmp_path, "a/b/images/f0.png")
    assert "found a/b/images/f0.png (2 folders deeper)" in by_path(tmp_path, "images/f0.png")


def test_a_name_that_many_images_have_says_nothing(tmp_path: Path) -> None:
    put(tmp_path, "train/p1/view1.jpg", "train/p2/view1.jpg", "valid/p3/view1.jpg")
    assert "no similar file found; the first of 3 images" in by_path(tmp_path, "train/p9/view1.jpg")
    assert "found valid/p3/view1.jpg (without the prefix set/)" in by_path(tmp_path, "set/valid/p3/view1.jpg")


def test_the_nearest_of_several_is_named(tmp_path: Path) -> None:
    put(tmp_path, "images/A.jpg", "images/a.jpeg", "images/a.PNG", "images/sub/a.jpg")
    assert "found images/a.PNG (upper-case extension); 3 more similar files" in by_name(tmp_path, "a.png")


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
    assert text == f"looked for a.png; found images/a.PNG in images.{kind} (upper-case extension)"


def test_archive_beside_a_table_of_paths(tmp_path: Path) -> None:
    put(tmp_path, "images.zip")
    assert by_path(tmp_path, "images/a.png").endswith(
        "no images found; images.zip is not searched: unpack it"
    )


def test_what_stands_there_but_is_no_file(tmp_path: Path) -> None:
    put(tmp_path, "images/x.png")
    (tmp_path / "images/a.png").symlink_to("/gone/a.png")
    (tmp_path / "images/b.png").symlink_to("b.png")
    os.mkfifo(tmp_path / "images/c.png")
    (tmp_path / "images/d.png").mkdir()
    texts = describe_missing(tmp_path, ["a.png", "b.png", "c.png", "d.png"], NONE, by_path=False)
    assert [text.partition("; ")[2] for text in texts] == [
        "images/a.png is a link to /gone/a.png, which is not a readable file",
        "images/b.png is a link to b.png, which is not a readable file",
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
