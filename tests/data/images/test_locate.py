"""Images are found in archives and folders, read in order, and never trusted."""

import gzip
import io
import os
import tarfile
from pathlib import Path

import pytest

from ral.data.file_hash import FileHash
from ral.data.images.locate import find_sources, list_images, read_images, total_bytes
from ral.errors import UserError
from ral.files import sha256


def quiet(_: int) -> None:
    """No progress."""


def archive(path: Path, members: dict[str, bytes], **kinds: bytes) -> None:
    """Write a tar.gz; `kinds` gives a member another type, such as a link."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            info.type = kinds.get(name, tarfile.REGTYPE)
            tar.addfile(info, io.BytesIO(content))


def test_lists_archives_in_stored_order_with_their_hash(small_phantom: Path) -> None:
    images, hashes = list_images(small_phantom, quiet)
    with tarfile.open(small_phantom / "images_001.tar.gz") as tar:
        assert images["member"].tolist() == tar.getnames()
    assert images["image_id"].tolist() == [name.removeprefix("images/") for name in images["member"]]
    path = small_phantom / "images_001.tar.gz"
    assert hashes == {"images_001.tar.gz": FileHash(bytes=path.stat().st_size, sha256=sha256(path))}


def test_progress_adds_up_to_the_bytes_there_are(small_phantom: Path) -> None:
    seen: list[int] = []
    list_images(small_phantom, seen.append)
    assert sum(seen) == total_bytes(small_phantom)


@pytest.mark.parametrize(
    "layout",
    [
        "images",
        "images_001/images",
        "images_001",
        "images-224/images-224",
        "Images",
        "images.zip",
        "images/png",
    ],
)
def test_unpacked_folders_give_the_same_images(phantom_copy: Path, layout: str) -> None:
    packed, _ = list_images(phantom_copy, quiet)
    target = phantom_copy / layout
    target.mkdir(parents=True)
    with tarfile.open(phantom_copy / "images_001.tar.gz") as tar:
        for member in tar:
            (target / Path(member.name).name).write_bytes(tar.extractfile(member).read())  # type: ignore[union-attr]
    (phantom_copy / "images_001.tar.gz").unlink()
    images, hashes = list_images(phantom_copy, quiet)
    assert sorted(images["image_id"]) == sorted(packed["image_id"])
    assert (images["member"] == "").all()
    assert not hashes
    assert (phantom_copy / images["path"].iloc[0]).is_file()


@pytest.mark.parametrize("ending", [".tar.gz", ".tar"])
def test_reads_only_the_wanted_images(phantom_copy: Path, ending: str) -> None:
    path = phantom_copy / "images_001.tar.gz"
    with tarfile.open(path) as tar:
        contents = {Path(name).name: tar.extractfile(name).read() for name in tar.getnames()}  # type: ignore[union-attr]
    if ending == ".tar":
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    images, _ = list_images(phantom_copy, quiet)
    some = images.iloc[[200, 202, 399]]
    assert list(read_images(phantom_copy, some)) == [contents[name] for name in some["image_id"]]


def test_plain_archive_is_read_from_the_first_wanted_image_to_the_last(phantom_copy: Path) -> None:
    path = phantom_copy / "images_001.tar"
    path.write_bytes(gzip.decompress((phantom_copy / "images_001.tar.gz").read_bytes()))
    (phantom_copy / "images_001.tar.gz").unlink()
    images, _ = list_images(phantom_copy, quiet)
    content = bytearray(path.read_bytes())
    content[: images["offset"].iloc[100]] = bytes(
        images["offset"].iloc[100]
    )  # what is before cannot be read now
    path.write_bytes(content)
    assert len(list(read_images(phantom_copy, images.iloc[100:103]))) == 3


@pytest.mark.parametrize("loose", [False, True])
def test_image_that_changed_since_it_was_listed_is_named(phantom_copy: Path, loose: bool) -> None:
    if loose:
        with tarfile.open(phantom_copy / "images_001.tar.gz") as tar:
            tar.extractall(phantom_copy, filter="data")
        (phantom_copy / "images_001.tar.gz").unlink()
    images, _ = list_images(phantom_copy, quiet)
    images.loc[3, "hash"] = images.loc[4, "hash"]
    with pytest.raises(
        UserError,
        match=rf"Image .*{images['image_id'].iloc[3]}.* has changed since it was validated.*validate",
    ):
        list(read_images(phantom_copy, images.iloc[2:5]))


def test_hash_is_of_the_content_alone(phantom_copy: Path) -> None:
    packed, _ = list_images(phantom_copy, quiet)
    with tarfile.open(phantom_copy / "images_001.tar.gz") as tar:
        tar.extractall(phantom_copy, filter="data")
    (phantom_copy / "images_001.tar.gz").unlink()
    loose, _ = list_images(phantom_copy, quiet)
    hashes = packed.set_index("image_id")["hash"]
    assert hashes.sort_index().equals(loose.set_index("image_id")["hash"].sort_index())
    assert hashes.iloc[0] == sha256(phantom_copy / "images" / hashes.index[0])[:32]


def test_folder_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.png").write_bytes(b"x")
    (tmp_path / "images").chmod(0)
    if os.access(tmp_path / "images", os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(PermissionError, match="images"):
        list_images(tmp_path, quiet)


@pytest.mark.parametrize("name", ["images/../../evil.png", "/etc/evil.png"])
def test_member_outside_is_refused(tmp_path: Path, name: str) -> None:
    archive(tmp_path / "images_001.tar.gz", {"images/a.png": b"x", name: b"x"})
    with pytest.raises(UserError, match=r"images_001\.tar\.gz: member `.*evil.png` points outside"):
        list_images(tmp_path, quiet)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_link_or_device_is_refused(tmp_path: Path, kind: bytes) -> None:
    archive(tmp_path / "images_001.tar.gz", {"a.png": b""}, **{"a.png": kind})
    with pytest.raises(UserError, match=r"`a\.png` is a link or device"):
        list_images(tmp_path, quiet)


@pytest.mark.parametrize("keep", [0.9, 0.5, 0.001])
def test_truncated_archive_is_named(phantom_copy: Path, keep: float) -> None:
    path = phantom_copy / "images_001.tar.gz"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(UserError, match=r"images_001\.tar\.gz is truncated or damaged"):
        list_images(phantom_copy, quiet)


def test_flipped_byte_in_an_archive_is_noticed(phantom_copy: Path) -> None:
    path = phantom_copy / "images_001.tar.gz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"images_001\.tar\.gz is truncated or damaged"):
        list_images(phantom_copy, quiet)


def test_image_twice_is_named_with_both_places(tmp_path: Path) -> None:
    archive(tmp_path / "images_001.tar.gz", {"images/a.png": b"x"})
    archive(tmp_path / "images_002.tar.gz", {"images/a.png": b"x"})
    with pytest.raises(UserError, match=r"a\.png exists twice, in images_001\.tar\.gz and in images_002"):
        list_images(tmp_path, quiet)


def test_folder_without_images(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no images"):
        find_sources(tmp_path)
    (tmp_path / "archive.zip").write_bytes(b"PK")
    with pytest.raises(
        UserError, match=r"has no images: .* archive\.zip is not read: unpack it into a folder"
    ):
        find_sources(tmp_path)
    (tmp_path / "images").symlink_to("/gone/images")
    with pytest.raises(
        UserError, match=r"has no images: .* images is a link to /gone/images, which does not exist"
    ):
        find_sources(tmp_path)


def put(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"image")


def test_folder_in_a_folder_is_taken_only_if_it_is_the_one_with_images(tmp_path: Path) -> None:
    def found() -> list[str]:
        return [folder.relative_to(tmp_path).as_posix() for folder in find_sources(tmp_path)[1]]

    put(
        tmp_path,
        "images-224/notes/README.txt",
        "images-224/.hidden/x.png",
        "images-224/a/1.png",
        "images_002/images/2.png",
    )
    assert found() == ["images-224/a", "images_002/images"]
    assert list_images(tmp_path, quiet)[0]["path"].tolist() == [
        "images-224/a/1.png",
        "images_002/images/2.png",
    ]
    put(tmp_path, "images-224/b/3.PNG")  # which of the two?
    assert found() == ["images-224", "images_002/images"]
    put(tmp_path, "images-224/4.dcm")
    assert found() == ["images-224", "images_002/images"]


def test_folders_without_a_image_say_what_is_in_them(tmp_path: Path) -> None:
    put(tmp_path, "images/IM0001", "images/IM0002", "images_2/._a.png")
    text = r"has no images: none is in images, images_2\. .*/images has 2 entries, the first is IM0001\. Names of images end in .*\.dcm"
    with pytest.raises(UserError, match=text):
        list_images(tmp_path, quiet)


def test_what_is_no_file_is_no_image(tmp_path: Path) -> None:
    put(tmp_path, "images/a.PNG", "images/b.JPG", "images/c.Dcm", "images/README.txt")
    os.mkfifo(tmp_path / "images/pipe.png")
    os.mkfifo(tmp_path / "images.zip")
    (tmp_path / "images/gone.png").symlink_to("/gone/gone.png")
    (tmp_path / "images/round.png").symlink_to("round.png")
    (tmp_path / "images/folder.png").mkdir()
    (tmp_path / "images_gone").symlink_to("/gone")
    (tmp_path / "other.png").write_bytes(b"linked")
    (tmp_path / "images/link.png").symlink_to("../other.png")
    images, _ = list_images(tmp_path, quiet)
    assert images["image_id"].tolist() == ["a.PNG", "b.JPG", "c.Dcm", "link.png"]
    assert list(read_images(tmp_path, images)) == [b"image", b"image", b"image", b"linked"]
    seen: list[int] = []
    list_images(tmp_path, seen.append)
    assert sum(seen) == total_bytes(tmp_path)


def test_image_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    put(tmp_path, "images/a.png")
    (tmp_path / "images/a.png").chmod(0)
    if os.access(tmp_path / "images/a.png", os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(PermissionError, match=r"a\.png"):
        list_images(tmp_path, quiet)


def test_image_that_has_gone_or_grown_too_large(tmp_path: Path) -> None:
    put(tmp_path, "images/a.png", "images/b.png")
    images, _ = list_images(tmp_path, quiet)
    os.truncate(tmp_path / "images/a.png", 1 << 40)
    with pytest.raises(UserError, match=r"images/a\.png has 1,099,511,627,776 bytes"):
        list(read_images(tmp_path, images))
    (tmp_path / "images/a.png").unlink()
    with pytest.raises(UserError, match=r"images/a\.png no longer exists"):
        list(read_images(tmp_path, images))


@pytest.mark.parametrize("name", ["images/R\udcf6ntgen.png", "images_\udcf6/a.png", "images_\udcf6.tar.gz"])
def test_name_that_is_not_utf8_is_shown_escaped(tmp_path: Path, name: str) -> None:
    put(tmp_path, "images/a.png", name)
    with pytest.raises(UserError, match=r"the name `[^`]*\\xf6[^`]*` is not UTF-8\. Rename it"):
        list_images(tmp_path, quiet)


@pytest.mark.parametrize("name", ["NIH [2017] Ärzte", "a\nb", " x ", "*", "100%", "ä\u0301"])
def test_data_folder_with_an_odd_name(tmp_path: Path, name: str) -> None:
    put(tmp_path, f"{name}/images/a.png", f"{name}/images/b\nc.png")
    images, _ = list_images(tmp_path / name, quiet)
    assert images["image_id"].tolist() == ["a.png", "b\nc.png"]
    (tmp_path / name / "images/b\nc.png").unlink()
    with pytest.raises(UserError, match=r"/images/b\\nc\.png no longer exists") as caught:
        list(read_images(tmp_path / name, images))
    assert str(caught.value).isprintable()


def test_data_folder_whose_name_is_not_utf8(tmp_path: Path) -> None:
    put(tmp_path, "R\udcf6/images/a.png")
    with pytest.raises(UserError, match=r"The name of the data folder .*/R\\xf6 is not UTF-8"):
        list_images(tmp_path / "R\udcf6", quiet)
