"""Films are found in archives and folders, read in order, and never trusted."""

import io
import tarfile
from pathlib import Path

import pytest

from ral.data.films import find_sources, list_films, read_films, total_bytes
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
    films, hashes = list_films(small_phantom, quiet)
    with tarfile.open(small_phantom / "images_001.tar.gz") as tar:
        assert films["member"].tolist() == tar.getnames()
    assert films["image_id"].tolist() == [name.removeprefix("images/") for name in films["member"]]
    path = small_phantom / "images_001.tar.gz"
    assert hashes == {"images_001.tar.gz": {"bytes": path.stat().st_size, "sha256": sha256(path)}}


def test_progress_adds_up_to_the_bytes_there_are(small_phantom: Path) -> None:
    seen: list[int] = []
    list_films(small_phantom, seen.append)
    assert sum(seen) == total_bytes(small_phantom)


@pytest.mark.parametrize("layout", ["images", "images_001/images", "images_001"])
def test_unpacked_folders_give_the_same_films(phantom_copy: Path, layout: str) -> None:
    packed, _ = list_films(phantom_copy, quiet)
    target = phantom_copy / layout
    target.mkdir(parents=True)
    with tarfile.open(phantom_copy / "images_001.tar.gz") as tar:
        for member in tar:
            (target / Path(member.name).name).write_bytes(tar.extractfile(member).read())  # type: ignore[union-attr]
    (phantom_copy / "images_001.tar.gz").unlink()
    films, hashes = list_films(phantom_copy, quiet)
    assert sorted(films["image_id"]) == sorted(packed["image_id"])
    assert (films["member"] == "").all()
    assert not hashes
    assert (phantom_copy / films["path"].iloc[0]).is_file()


def test_reads_only_the_wanted_films(small_phantom: Path) -> None:
    films, _ = list_films(small_phantom, quiet)
    wanted = set(films["image_id"].iloc[[5, 2, 9]])
    read = dict(read_films(small_phantom, "images_001.tar.gz", wanted))
    assert list(read) == films["image_id"].iloc[[2, 5, 9]].tolist()
    assert all(content.startswith(b"\x89PNG") for content in read.values())


@pytest.mark.parametrize("name", ["images/../../evil.png", "/etc/evil.png"])
def test_member_outside_is_refused(tmp_path: Path, name: str) -> None:
    archive(tmp_path / "images_001.tar.gz", {"images/a.png": b"x", name: b"x"})
    with pytest.raises(UserError, match=r"images_001\.tar\.gz: member `.*evil.png` points outside"):
        list_films(tmp_path, quiet)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_link_or_device_is_refused(tmp_path: Path, kind: bytes) -> None:
    archive(tmp_path / "images_001.tar.gz", {"a.png": b""}, **{"a.png": kind})
    with pytest.raises(UserError, match=r"`a\.png` is a link or device"):
        list_films(tmp_path, quiet)


@pytest.mark.parametrize("keep", [0.9, 0.5, 0.001])
def test_truncated_archive_is_named(phantom_copy: Path, keep: float) -> None:
    path = phantom_copy / "images_001.tar.gz"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(UserError, match=r"images_001\.tar\.gz is truncated or damaged"):
        list_films(phantom_copy, quiet)


def test_flipped_byte_in_an_archive_is_noticed(phantom_copy: Path) -> None:
    path = phantom_copy / "images_001.tar.gz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"images_001\.tar\.gz is truncated or damaged"):
        list_films(phantom_copy, quiet)


def test_film_twice_is_named_with_both_places(tmp_path: Path) -> None:
    archive(tmp_path / "images_001.tar.gz", {"images/a.png": b"x"})
    archive(tmp_path / "images_002.tar.gz", {"images/a.png": b"x"})
    with pytest.raises(UserError, match=r"a\.png is there twice, in images_001\.tar\.gz and in images_002"):
        list_films(tmp_path, quiet)


def test_folder_without_films(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no films"):
        find_sources(tmp_path)
