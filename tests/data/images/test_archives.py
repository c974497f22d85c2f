"""Archives of images: what is read, what is refused in one message, and how little memory it takes."""

import gzip
import io
import random
import stat
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from ral.data.images import archives, inflate
from ral.data.images.locate import list_images, read_images
from ral.errors import UserError

IMAGES = {f"images/{number:03}.png": random.Random(number).randbytes(900) for number in range(6)}


@pytest.fixture(params=["isal", "zlib"])
def unpacker(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What unpacks gzip: ISA-L, or Python without the extra `data`."""
    if request.param == "zlib":
        monkeypatch.setattr(inflate, "isal_zlib", None)
    elif inflate.isal_zlib is None:
        pytest.skip("needs the extra `data`")


@pytest.fixture(params=[1 << 10, 256 << 10])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes per read: members of several blocks, and several in a block."""
    monkeypatch.setattr(archives, "BLOCK", request.param)


def quiet(_: int) -> None:
    """No progress."""


def write_tar(path: Path, members: dict[str, bytes], form: int = tarfile.PAX_FORMAT, **options: str) -> bytes:
    """Write a tar, gzipped if its name says so, and return its bytes."""
    mode = "w:gz" if path.name.endswith("gz") else "w"
    with tarfile.open(path, mode, format=form, **options) as tar:  # type: ignore[call-overload]
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path.read_bytes()


def write_zip(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """Write a zip and return its bytes."""
    with zipfile.ZipFile(path, "w", method) as packed:
        for name, content in members.items():
            packed.writestr(name, content)
    return path.read_bytes()


WRITERS: dict[str, Callable[[Path, dict[str, bytes]], bytes]] = {
    ".tar": write_tar, ".tar.gz": write_tar, ".tgz": write_tar, ".TAR": write_tar,
    ".zip": write_zip, ".ZIP": write_zip,
}  # fmt: skip


def found(root: Path) -> dict[str, bytes]:
    """Images by id, as they are listed and read."""
    images, _ = list_images(root, quiet)
    result = {}
    for _, part in images.groupby(["path", images["member"] != ""]):
        result |= dict(zip(part["image_id"], read_images(root, part), strict=True))
    return result


def refused(root: Path) -> str:
    """The one message that listing the images ends with."""
    with pytest.raises(UserError) as caught:
        list_images(root, quiet)
    assert str(caught.value).isprintable()
    return str(caught.value)


def zip_entry(name: str, content: bytes = b"x", **attributes: int) -> tuple[zipfile.ZipInfo, bytes]:
    """A member with attributes that zipfile does not set by itself."""
    info = zipfile.ZipInfo(name)
    for key, value in attributes.items():
        setattr(info, key, value)
    return info, content


def write_entries(path: Path, *entries: tuple[zipfile.ZipInfo, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as packed:
        for info, content in entries:
            packed.writestr(info, content)


@pytest.mark.usefixtures("unpacker", "block")
@pytest.mark.parametrize("ending", WRITERS)
def test_every_kind_of_archive_is_read(tmp_path: Path, ending: str) -> None:
    WRITERS[ending](tmp_path / f"images_001{ending}", {"README.txt": b"x", **IMAGES})
    assert found(tmp_path) == {Path(name).name: content for name, content in IMAGES.items()}
    images, _ = list_images(tmp_path, quiet)
    some = images.iloc[[1, 2, 5]]
    assert list(read_images(tmp_path, some)) == [IMAGES[name] for name in some["member"]]


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_zip_is_read_at_the_wanted_members_only(tmp_path: Path, method: int) -> None:
    path = tmp_path / "images.zip"
    content = bytearray(write_zip(path, IMAGES, method))
    images, hashes = list_images(tmp_path, quiet)
    assert hashes["images.zip"].bytes == len(content)
    assert images["offset"].is_monotonic_increasing
    begin, end = images["offset"].iloc[0] + 60, images["offset"].iloc[3]
    content[begin:end] = bytes(end - begin)  # the first three members cannot be read any more
    path.write_bytes(content)
    assert list(read_images(tmp_path, images.iloc[3:])) == list(IMAGES.values())[3:]
    with pytest.raises(UserError, match=r"damaged|has changed since it was validated"):
        list(read_images(tmp_path, images.iloc[:1]))


def test_zip64_and_members_written_to_a_pipe_are_read(tmp_path: Path) -> None:
    class Pipe(io.RawIOBase):  # what cannot seek gets sizes behind each member
        def __init__(self, file: io.BufferedWriter) -> None:
            self.file = file

        def writable(self) -> bool:
            return True

        def write(self, data: bytes) -> int:  # type: ignore[override]
            return self.file.write(data)

    with (tmp_path / "images.zip").open("wb") as file, zipfile.ZipFile(Pipe(file), "w", 8) as packed:  # type: ignore[arg-type]
        for name, content in IMAGES.items():
            with packed.open(name, "w", force_zip64=True) as member:
                member.write(content)
    assert len(found(tmp_path)) == len(IMAGES)


def test_image_of_a_zip_that_changed_or_has_gone(tmp_path: Path) -> None:
    path = tmp_path / "images.zip"
    write_zip(path, IMAGES, zipfile.ZIP_STORED)
    images, _ = list_images(tmp_path, quiet)
    write_zip(path, IMAGES | {"images/003.png": bytes(900)}, zipfile.ZIP_STORED)
    with pytest.raises(
        UserError, match=r"Image 003\.png in .*images\.zip has changed since it was validated"
    ):
        list(read_images(tmp_path, images))
    write_zip(path, dict(list(IMAGES.items())[:3]), zipfile.ZIP_STORED)
    with pytest.raises(UserError, match=r"images\.zip: image 003\.png no longer exists"):
        list(read_images(tmp_path, images))
    path.unlink()
    with pytest.raises(UserError, match=r"images\.zip no longer exists"):
        list(read_images(tmp_path, images))


@pytest.mark.parametrize("ending", [".tar.gz", ".tar", ".zip"])
def test_hidden_files_are_no_images(tmp_path: Path, ending: str) -> None:
    hidden = (
        "images/._000.png",
        "__MACOSX/images/._000.png",
        "__MACOSX/000.png",
        ".trash/000.png",
        "images/.a.png",
    )
    images = {f"./{name}": content for name, content in IMAGES.items()}
    WRITERS[ending](tmp_path / f"images{ending}", dict.fromkeys(hidden, b"Mac OS X") | images)
    (tmp_path / "images").mkdir()
    (tmp_path / "images/._loose.png").write_bytes(b"Mac OS X")
    assert len(found(tmp_path)) == len(IMAGES)


@pytest.mark.parametrize("ending", [".tar.gz", ".zip"])
def test_archive_without_any_image(tmp_path: Path, ending: str) -> None:
    for members in ({}, {"images/._a.png": b"x"}, {"a.tif": b"x"}):
        WRITERS[ending](tmp_path / f"images{ending}", members)
        assert f"has no images: none is in images{ending}. Names of images end in .png" in refused(tmp_path)


@pytest.mark.parametrize(
    "name", ["../evil.png", "/etc/evil.png", "..\\evil.png", "C:\\evil.png", "a/../../evil.png"]
)
def test_zip_member_outside_is_refused(tmp_path: Path, name: str) -> None:
    write_zip(tmp_path / "images.zip", {name: b"x"})
    assert "points outside the archive" in refused(tmp_path)


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_zip_member_that_is_a_link_or_device_is_refused(tmp_path: Path, kind: int) -> None:
    write_entries(
        tmp_path / "images.zip", zip_entry("a.png", create_system=3, external_attr=(kind | 0o644) << 16)
    )
    assert "`a.png` is a link or device" in refused(tmp_path)


def test_backslashes_in_a_zip_part_folders(tmp_path: Path) -> None:
    write_zip(tmp_path / "images.zip", {"images\\a.png": b"a", "images\\sub\\": b""})
    images, _ = list_images(tmp_path, quiet)
    assert images[["image_id", "member"]].values.tolist() == [["a.png", "images/a.png"]]
    assert found(tmp_path) == {"a.png": b"a"}


def test_same_name_twice_in_one_archive_is_named_with_both_members(tmp_path: Path) -> None:
    write_zip(tmp_path / "images.zip", {"images/a.png": b"a", "more/a.png": b"b"})
    assert "a.png exists twice, in images/a.png and in more/a.png" in refused(tmp_path)
    (tmp_path / "images.zip").unlink()
    with pytest.warns(UserWarning, match="Duplicate"):
        write_entries(tmp_path / "images.zip", zip_entry("a.png", b"a"), zip_entry("a.png", b"b"))
    assert "a.png exists twice" in refused(tmp_path)


@pytest.mark.parametrize(("bits", "method", "text"), [
    (1, 0, "is encrypted"), (0x41, 0, "is encrypted"), (0, 9, "by method 9"), (0, 93, "by method 93"), (0, 14, "by method 14"),
])  # fmt: skip
def test_zip_member_that_cannot_be_read(tmp_path: Path, bits: int, method: int, text: str) -> None:
    path = tmp_path / "images.zip"
    content = bytearray(write_zip(path, {"a.png": b"x" * 99, "note.txt": b"x"}, zipfile.ZIP_STORED))
    local, central = content.index(b"PK\3\4"), content.index(b"PK\1\2")
    for place in (local + 6, central + 8):
        content[place : place + 4] = struct.pack("<HH", bits, method)
    path.write_bytes(content)
    assert "`a.png`" in refused(tmp_path)
    assert text in refused(tmp_path)


def without(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :]


@pytest.mark.parametrize("damage", [
    lambda content: without(content, 400),  # in a member
    lambda content: without(content, content.index(b"PK\1\2") + 16),  # its checksum
    lambda content: without(content, content.index(b"PK\1\2", 4) + 1),  # the list of members
    lambda content: without(content, content.index(b"PK\5\6") + 10),  # how many there are
    lambda content: content[:-30],
    lambda content: content[: len(content) // 2],
    lambda content: content[:1],
    lambda content: b"",
    lambda content: b"<html>Please log in</html>",
    lambda content: content[1000:],
])  # fmt: skip
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_damaged_zip_is_named(tmp_path: Path, method: int, damage: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "images.zip"
    path.write_bytes(damage(write_zip(path, IMAGES, method)))
    assert "images.zip is truncated or damaged" in refused(tmp_path)


@pytest.mark.usefixtures("unpacker", "block")
@pytest.mark.parametrize("damage", [
    lambda content: without(content, 3 * 1536 + 5),  # a header in the middle: tarfile takes it for the end
    lambda content: content[: 3 * 1536],  # cut between two members
    lambda content: content[: 3 * 1536 + 100],  # in a header
    lambda content: content[: 3 * 1536 + 700],  # in a member
    lambda content: content[:100],
    lambda content: b"",
    lambda content: b"<html>Please log in</html>" * 100,
])  # fmt: skip
@pytest.mark.parametrize("ending", [".tar", ".tar.gz"])
def test_damaged_tar_is_named(tmp_path: Path, ending: str, damage: Callable[[bytes], bytes]) -> None:
    content = damage(write_tar(tmp_path / "images.tar", IMAGES, tarfile.USTAR_FORMAT))
    (tmp_path / "images.tar").unlink()
    (tmp_path / f"images{ending}").write_bytes(content if ending == ".tar" else gzip.compress(content))
    assert f"images{ending} is truncated or damaged" in refused(tmp_path)


@pytest.mark.usefixtures("unpacker", "block")
@pytest.mark.parametrize("damage", [
    lambda content: content[:-4], lambda content: without(content, len(content) - 6),
    lambda content: without(content, 300), lambda content: content + b"rest",
    lambda content: content + bytes(3 << 20) + b"rest", lambda content: content[:5],
])  # fmt: skip
def test_damaged_gzip_is_named(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "images.tar.gz"
    path.write_bytes(damage(write_tar(path, IMAGES)))
    assert "images.tar.gz is truncated or damaged" in refused(tmp_path)


@pytest.mark.usefixtures("unpacker", "block")
def test_zeros_behind_a_gzip_are_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "images.tgz"
    content = write_tar(path, IMAGES) + bytes(3 << 20)
    path.write_bytes(content)
    images, hashes = list_images(tmp_path, quiet)
    assert len(images) == len(IMAGES)
    assert hashes["images.tgz"].bytes == len(content)


def member(content: bytes) -> bytes:
    """A gzip member with extra data, a name, a comment and a checksum of this header."""
    extra, name, comment = b"ab\4\0text", b"images.tar\0", b"by nobody\0"
    head = b"\x1f\x8b\x08\x1e" + bytes(5) + b"\xff" + struct.pack("<H", len(extra)) + extra + name + comment
    packer = zlib.compressobj(wbits=-15)
    packed = packer.compress(content) + packer.flush()
    checks = struct.pack("<LL", zlib.crc32(content), len(content))
    return head + struct.pack("<H", zlib.crc32(head) & 0xFFFF) + packed + checks


@pytest.mark.usefixtures("unpacker", "block")
def test_a_gzip_of_many_members_with_long_headers(tmp_path: Path) -> None:
    content = write_tar(tmp_path / "images.tar", IMAGES)
    (tmp_path / "images.tar").unlink()
    path = tmp_path / "images.tar.gz"
    path.write_bytes(b"".join(member(content[start : start + 7]) for start in range(0, len(content), 7)))
    images, _ = list_images(tmp_path, quiet)
    assert len(images) == len(IMAGES)
    assert list(read_images(tmp_path, images)) == list(IMAGES.values())


@pytest.mark.usefixtures("unpacker", "block")
@pytest.mark.parametrize("ending", [".tar", ".tar.gz"])
def test_archives_joined_with_cat_lose_no_image_in_silence(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"images{ending}"
    first = write_tar(path, {"a.png": b"a"})
    path.write_bytes(first + write_tar(path, {"b.png": b"b"}))
    assert f"images{ending} has data after its end mark" in refused(tmp_path)


@pytest.mark.parametrize(
    ("ending", "right"), [(".tar.gz", ".tar"), (".tar.gz", ".zip"), (".zip", ".tar.gz"), (".tar", ".zip")]
)
def test_archive_of_another_kind_is_told(tmp_path: Path, ending: str, right: str) -> None:
    path = tmp_path / f"packed{right}"
    WRITERS[right](path, IMAGES)
    path.rename(tmp_path / f"images{ending}")
    assert f"Rename it to end in {right}." in refused(tmp_path)


def test_text_under_the_name_of_a_gzip(tmp_path: Path) -> None:
    (tmp_path / "images.tar.gz").write_text("<html>Please log in</html>")
    assert "images.tar.gz is not a gzip file" in refused(tmp_path)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("folder", ["images", "x" * 120 + "/y"])
def test_tar_member_whose_name_is_not_utf8(tmp_path: Path, form: int, folder: str) -> None:
    path = tmp_path / "images.tar"
    # As it comes from a Linux of another language; a PAX header would say that it is binary.
    write_tar(
        path, {f"{folder}/a.png": b"a", f"{folder}/R\udcf6ntgen.png": b"x"}, form, errors="surrogateescape"
    )
    assert rf"member `{folder}/R\xf6ntgen.png` is not UTF-8" in refused(tmp_path)


def test_name_that_is_not_utf8_of_what_is_no_image_does_not_matter(tmp_path: Path) -> None:
    write_tar(tmp_path / "images.tar", {"a.png": b"a", "R\udcf6ntgen.txt": b"x"}, errors="surrogateescape")
    assert found(tmp_path) == {"a.png": b"a"}


@pytest.mark.parametrize(("raw", "bits", "name"), [
    ("Röntgen.png".encode("cp437"), 0, "Röntgen.png"),  # old Windows
    (unicodedata.normalize("NFD", "Röntgen.png").encode(), 0, unicodedata.normalize("NFD", "Röntgen.png")),  # macOS
    ("Röntgen.png".encode(), 0x800, "Röntgen.png"),
])  # fmt: skip
def test_names_in_zips_are_decoded(tmp_path: Path, raw: bytes, bits: int, name: str) -> None:
    path = tmp_path / "images.zip"
    content = bytearray(write_zip(path, {"x" * len(raw): b"image"}).replace(b"x" * len(raw), raw))
    content[6:8] = struct.pack("<H", bits)
    central = content.index(b"PK\1\2") + 8
    content[central : central + 2] = struct.pack("<H", bits)
    path.write_bytes(content)
    assert found(tmp_path) == {name: b"image"}


def test_zip_name_that_breaks_its_promise_of_utf8(tmp_path: Path) -> None:
    path = tmp_path / "images.zip"
    path.write_bytes(write_zip(path, {"Röntgen.png": b"image"}).replace("ö".encode(), b"\xf6\xf6"))
    assert "images.zip is truncated or damaged ('utf-8' codec" in refused(tmp_path)


def test_control_characters_of_a_member_are_shown_escaped(tmp_path: Path) -> None:
    write_tar(tmp_path / "images.tar", {"../a\n\x1b[31m.png": b"a"})
    assert r"member `../a\n\x1b[31m.png`" in refused(tmp_path)
