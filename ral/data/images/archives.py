"""Reads the images of archives (tar, gzipped tar, zip) as streams. An archive is never trusted.

Nothing is unpacked to disk, and no more is held in memory than what the caller reads of a member. Sizes that an
archive claims are compared with limits first.
"""

import errno
import math
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple, Protocol, Self

from ral.data.images.file_names import is_image, is_utf8, shown
from ral.data.images.limits import ANY_GROWTH, MOST_BYTES, MOST_GROWTH
from ral.errors import UserError

# Bytes read at once. tarfile copies what is left of a block at every read, so larger ones are slower.
BLOCK = 128 << 10

# A member's header with its extensions; a name and its times take some hundred bytes.
MOST_HEADER = 1 << 20

GET_AGAIN = "Do not use this archive: get it again from its owner."


class Member(NamedTuple):
    """An image in an archive.

    `name` is that inside the archive, with `/` between folders; `offset` is where its header begins (in the unpacked
    archive, if it is gzipped). `stream` has its `size` bytes, and can be read until the next member is asked for.
    """

    name: str
    offset: int
    size: int
    stream: IO[bytes]


class Readable(Protocol):
    """What is read from front to back."""

    def read(self, size: int, /) -> bytes:
        """Up to `size` bytes; none at the end."""


def members(archive: Path, stream: Readable, wanted: Sequence[int] | None = None) -> Iterator[Member]:
    """Yield the images of an archive in the order of their offsets.

    A zip is read at the wanted members only. A plain tar is read from the first wanted member to the last, a gzipped
    one is unpacked up to the first.

    Args:
        archive: its path; the ending says of which kind it is.
        stream: the archive, opened at its begin; a zip's must be one that can seek, a tar's only if `wanted` is given.
        wanted: ascending offsets of the members to yield; None yields all, and checks that the archive is whole.

    Raises:
        UserError: the archive is of another kind, or holds what a well-made archive of images does not.
    """
    kind = _kind(archive)
    if kind == "zip":
        yield from _zip_members(archive, stream, wanted)  # type: ignore[arg-type]
    else:
        yield from _tar_members(archive, stream if kind == "tar" else Gunzip(archive, stream), wanted)


@contextmanager
def naming_damage(archive: Path) -> Iterator[None]:
    """Turn what goes wrong while an archive's members are read into one message.

    Raises:
        UserError: the archive is truncated or damaged.
    """
    try:
        yield
    except (
        tarfile.TarError,
        zipfile.BadZipFile,
        zlib.error,
        struct.error,
        EOFError,
        ValueError,
        OverflowError,
        RuntimeError,  # of zipfile; headers without end are a RecursionError
        OSError,
    ) as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        other = ", or unpack it into a folder images/ if another program can" if is_zip(archive) else ""
        raise UserError(
            f"{shown(archive)} is truncated or damaged ({shown(error)}). Download it again{other}."
        ) from None


def is_zip(archive: Path) -> bool:
    """Whether an archive is a zip by its name."""
    return archive.name.lower().endswith(".zip")


def _kind(archive: Path) -> str:
    """What an archive is (tar, gzip or zip), which its ending must say too."""
    tar = archive.name.lower().endswith(".tar")
    expected = "tar" if tar else "zip" if is_zip(archive) else "gzip"
    with archive.open("rb") as stream:
        head = stream.read(512)
    found = None
    if head.startswith(b"\x1f\x8b"):
        found = "gzip"
    elif head.startswith((b"PK\3\4", b"PK\5\6")):
        found = "zip"
    elif head[257:262] == b"ustar":
        found = "tar"
    if found not in (None, expected):
        right = {"tar": ".tar", "zip": ".zip", "gzip": ".tar.gz"}[found]
        raise UserError(
            f"{shown(archive)} is a {found} file, which its ending does not say. Rename it to end in {right}."
        )
    if found is None and expected == "gzip" and head:
        raise UserError(f"{shown(archive)} is not a gzip file, and so damaged. Download it again.")
    return expected


def _check_member(archive: Path, name: str, regular: bool) -> None:
    """Refuse what leads out of the archive, or is neither a file nor a folder."""
    if name.startswith("/") or name[1:3] == ":/" or ".." in PurePosixPath(name).parts:
        raise UserError(f"{shown(archive)}: member `{shown(name)}` points outside the archive. {GET_AGAIN}")
    if not regular:
        raise UserError(
            f"{shown(archive)}: member `{shown(name)}` is a link or device, not an image. {GET_AGAIN}"
        )


def _check_image(archive: Path, name: str, size: int) -> None:
    """Refuse an image whose name or size cannot be."""
    if not is_utf8(name):
        raise UserError(
            f"{shown(archive)}: the name of member `{shown(name)}` is not UTF-8. Unpack the archive into a folder "
            "images/, rename that file, and move the archive away."
        )
    check_size(f"{shown(archive)}: member `{shown(name)}`", size)


def check_size(name: str, size: int) -> None:
    """Check, before it is read, that an image is no larger than an image can be.

    Raises:
        UserError: it is larger.
    """
    if size > MOST_BYTES:
        raise UserError(
            f"{name} has {size:,} bytes; an image has at most {MOST_BYTES:,}. Leave it out of the data folder."
        )


def _check_growth(archive: Path, packed: int, unpacked: int) -> None:
    if unpacked > max(ANY_GROWTH, MOST_GROWTH * packed):
        raise UserError(
            f"{shown(archive)} unpacks to more than {MOST_GROWTH} times its size, which images never do. {GET_AGAIN}"
        )


class Gunzip:
    """A gzipped stream, unpacked as it is read; checksums are compared. (gzip.GzipFile reads 8 kB at a time.)"""

    def __init__(self, archive: Path, stream: Readable) -> None:
        self._archive, self._stream = archive, stream
        self._unpacker = zlib.decompressobj(wbits=31)
        self._packed = self._unpacked = 0

    def read(self, size: int, /) -> bytes:
        """Up to `size` bytes; none at the end."""
        while True:
            if self._unpacker.eof:  # another gzip member may follow, or zeros
                block = self._unpacker.unused_data.lstrip(b"\0")
                while not block and (more := self._next()):
                    block = more.lstrip(b"\0")
                if not block:
                    return b""
                self._unpacker = zlib.decompressobj(wbits=31)
            else:
                block = self._unpacker.unconsumed_tail or self._next()
                if not block:
                    raise EOFError("the compressed stream ends too early")
            content = self._unpacker.decompress(block, size)
            self._unpacked += len(content)
            _check_growth(self._archive, self._packed, self._unpacked)
            if content:
                return content

    def _next(self) -> bytes:
        block = self._stream.read(BLOCK)
        self._packed += len(block)
        return block


class _Header(tarfile.TarInfo):
    """Says of a damaged header that it is damaged: tarfile takes it for the archive's end, and images would be missing."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        if not buf:
            raise tarfile.ReadError("the end mark is missing")
        try:
            header = super().frombuf(buf, encoding, errors)
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError) as error:  # type: ignore[attr-defined]
            raise tarfile.ReadError(str(error)) from None
        if header.size < 0:
            raise tarfile.ReadError("a size below 0")
        return header


class _Guarded:
    """A stream that ends with an error where a header is read that never ends."""

    def __init__(self, stream: Readable) -> None:
        self._stream, self.position = stream, 0
        self.limit: float = MOST_HEADER + 2 * BLOCK  # tarfile reads a block ahead

    def read(self, size: int, /) -> bytes:
        """Up to `size` bytes; none at the end."""
        block = self._stream.read(size)
        self.position += len(block)
        if self.position > self.limit:
            raise tarfile.ReadError(f"a header of more than {MOST_HEADER:,} bytes")
        return block


def _tar_members(archive: Path, packed: Readable, wanted: Sequence[int] | None) -> Iterator[Member]:
    start = wanted[0] if wanted else 0
    chosen = None if wanted is None else set(wanted)
    _skip(packed, start)
    guarded = _Guarded(packed)
    options = {"bufsize": BLOCK, "tarinfo": _Header, "encoding": "utf-8", "errors": "surrogateescape"}
    with tarfile.open(fileobj=guarded, mode="r|", **options) as tar:  # type: ignore[call-overload]
        while (member := tar.next()) is not None:
            tar.members.clear()  # it would keep them all
            guarded.limit = math.inf
            if member.size < 0:  # an extended header may say so
                raise tarfile.ReadError("a size below 0")
            _check_member(archive, member.name, member.isfile() or member.isdir())
            if member.isfile() and is_image(member.name):
                offset = start + member.offset
                if chosen is None or offset in chosen:
                    _check_image(archive, member.name, member.size)
                    yield Member(member.name, offset, member.size, tar.extractfile(member))
                if wanted and offset >= wanted[-1]:
                    return
            guarded.limit = max(tar.offset, guarded.position) + MOST_HEADER + 2 * BLOCK
        guarded.limit = math.inf
        while block := tar.fileobj.read(BLOCK):  # gzip compares its checksum at the very end
            if block.strip(b"\0"):
                raise UserError(
                    f"{shown(archive)} goes on behind its end mark, as archives do that were joined with cat. Keep "
                    "them apart, or unpack it with `tar --ignore-zeros` into a folder images/."
                )


def _skip(stream: Readable, size: int) -> None:
    if isinstance(stream, Gunzip):
        while size and (block := stream.read(min(BLOCK, size))):  # it may have become shorter
            size -= len(block)
    elif size:
        stream.seek(size)  # type: ignore[attr-defined]


def _zip_members(archive: Path, stream: IO[bytes], wanted: Sequence[int] | None) -> Iterator[Member]:
    size = stream.seek(0, 2)
    with zipfile.ZipFile(stream) as packed:
        entries = sorted(packed.infolist(), key=lambda entry: entry.header_offset)
        _check_count(stream, len(entries), len(packed.comment))
        images = []
        end = 0
        for entry in entries:
            name = _zip_name(entry)
            if entry.header_offset < end:
                raise zipfile.BadZipFile("members overlap")
            end = entry.header_offset + zipfile.sizeFileHeader + entry.compress_size  # type: ignore[attr-defined]
            kind = stat.S_IFMT(entry.external_attr >> 16) if entry.create_system == 3 else 0
            folder = entry.is_dir() or name.endswith("/") or kind == stat.S_IFDIR
            _check_member(archive, name, folder or kind in (0, stat.S_IFREG))
            if not folder and is_image(name):
                _check_entry(archive, name, entry)
                images.append((name, entry))
        _check_growth(archive, size, sum(entry.file_size for _, entry in images))
        chosen = None if wanted is None else set(wanted)
        for name, entry in images:
            if chosen is None or entry.header_offset in chosen:
                with packed.open(entry) as content:
                    yield Member(name, entry.header_offset, entry.file_size, content)


def _check_count(stream: IO[bytes], found: int, comment: int) -> None:
    """Hold a zip's list of members to the number that its last record says; zipfile does not."""
    stream.seek(-22 - comment, 2)
    record = stream.read(12)
    said = int.from_bytes(record[10:], "little")
    if record.startswith(b"PK\5\6") and said not in (0xFFFF, found % 0x10000):
        raise zipfile.BadZipFile(f"it lists {found} of {said} members")


def _zip_name(entry: zipfile.ZipInfo) -> str:
    """A member's name. Without the mark for UTF-8 it is old Windows' (code page 437), or macOS', which forgets the mark."""
    name = entry.filename
    if not entry.flag_bits & 0x800:
        with suppress(UnicodeError):
            name = name.encode("cp437").decode()
    return name.replace("\\", "/")  # as some packers on Windows write it


def _check_entry(archive: Path, name: str, entry: zipfile.ZipInfo) -> None:
    place = f"{shown(archive)}: member `{shown(name)}`"
    if entry.flag_bits & 0x41:
        raise UserError(f"{place} is encrypted. Unpack the archive with its password, and move it away.")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise UserError(
            f"{place} is compressed by method {entry.compress_type}; only plain and deflated members are read. Unpack "
            "the archive into a folder images/, and move it away."
        )
    _check_image(archive, name, entry.file_size)
