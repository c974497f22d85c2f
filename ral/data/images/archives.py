"""Streams the images of archives (tar, gzipped tar, zip), which are treated as untrusted input.

Nothing is unpacked to disk, and memory holds only what the caller reads of a member. Sizes that an archive claims are
checked against limits first.
"""

import errno
import math
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol, Self

from ral.data.images import inflate
from ral.data.images.file_names import is_image, is_utf8, shown
from ral.data.images.limits import EXPANSION_CHECK_BYTES, MAX_BYTES, MAX_EXPANSION
from ral.errors import UserError

# Bytes per read. tarfile copies the rest of a block at every read, so larger blocks are slower.
BLOCK = 128 << 10

# Limit of a member's header with its extensions; a name and its times take a few hundred bytes.
MAX_HEADER_BYTES = 1 << 20

# At least as long as the header of a gzip member: 64 KiB of extra data, a name and a comment.
GZIP_HEADER_BYTES = 128 << 10

# What reading a damaged archive raises.
DAMAGE: tuple[type[Exception], ...] = (
    tarfile.TarError, zipfile.BadZipFile, *inflate.ERRORS, struct.error, EOFError, ValueError, OverflowError,
    RuntimeError,  # zipfile; endless headers raise RecursionError
    OSError,
)  # fmt: skip

DOWNLOAD_AGAIN = "Do not use this archive: download it again from its publisher."


class Readable(Protocol):
    """A stream that is read sequentially."""

    def read(self, size: int, /) -> bytes:
        """Up to `size` bytes; none at the end."""


class Member(NamedTuple):
    """An image in an archive.

    `name` is the path inside the archive, with `/` between folders; `offset` is that of the header (in the unpacked
    archive, if it is gzipped). `stream` has `size` bytes and can be read until the next member is requested.
    """

    name: str
    offset: int
    size: int
    stream: Readable


def members(
    archive: Path,
    stream: Readable,
    wanted: Sequence[int] | None = None,
    may_be_image: Callable[[str], bool] = is_image,
    kind: str | None = None,
) -> Iterator[Member]:
    """Yield the images of an archive in the order of their offsets.

    Of a zip, only the wanted members are read. A plain tar is read from the first wanted member to the last; a gzipped
    tar is also unpacked up to the first.

    Args:
        archive: its path; the extension gives the kind.
        stream: the archive, positioned at its start; must be seekable for a zip, and for a tar if `wanted` is given.
        wanted: ascending offsets of the members to yield; None yields all, and checks that the archive is complete.
        may_be_image: whether a member is an image, by its name.
        kind: tar or gzip for a stream that is no file (standard input), and is not checked against a name.

    Raises:
        UserError: the extension does not match the format, or the archive has unsafe or invalid members.
    """
    kind = kind or _kind(archive)
    if kind == "zip":
        yield from _zip_members(archive, stream, wanted, may_be_image)  # type: ignore[arg-type]
    else:
        unpacked = stream if kind == "tar" else Gunzip(archive, stream)
        yield from _tar_members(archive, unpacked, wanted, may_be_image)


@contextmanager
def explain_damage(archive: Path) -> Iterator[None]:
    """Turn exceptions raised while reading an archive into one clear message.

    Raises:
        UserError: the archive is truncated or damaged.
    """
    try:
        yield
    except DAMAGE as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        alternative = ", or unpack it into a folder images/ with another program" if is_zip(archive) else ""
        raise UserError(
            f"{shown(archive)} is truncated or damaged ({shown(error)}). Download it again{alternative}."
        ) from None


def is_zip(archive: Path) -> bool:
    """Whether an archive is a zip, by its name."""
    return archive.name.lower().endswith(".zip")


def _kind(archive: Path) -> str:
    """Format of an archive (tar, gzip or zip), which must match its extension."""
    tar = archive.name.lower().endswith(".tar")
    expected = "tar" if tar else "zip" if is_zip(archive) else "gzip"
    with archive.open("rb") as stream:
        head = stream.read(512)
    detected = None
    if head.startswith(b"\x1f\x8b"):
        detected = "gzip"
    elif head.startswith((b"PK\3\4", b"PK\5\6")):
        detected = "zip"
    elif head[257:262] == b"ustar":
        detected = "tar"
    if detected not in (None, expected):
        extension = {"tar": ".tar", "zip": ".zip", "gzip": ".tar.gz"}[detected]
        raise UserError(
            f"{shown(archive)} is a {detected} file with the wrong extension. Rename it to end in {extension}."
        )
    if detected is None and expected == "gzip" and head:
        raise UserError(f"{shown(archive)} is not a gzip file. It is damaged: download it again.")
    return expected


def _check_member(archive: Path, name: str, regular: bool) -> None:
    """Reject a member that points outside the archive, or is neither a file nor a folder."""
    if name.startswith("/") or name[1:3] == ":/" or ".." in name.split("/"):
        raise UserError(
            f"{shown(archive)}: member `{shown(name)}` points outside the archive. {DOWNLOAD_AGAIN}"
        )
    if not regular:
        raise UserError(
            f"{shown(archive)}: member `{shown(name)}` is a link or device, not an image. {DOWNLOAD_AGAIN}"
        )


def _check_image(archive: Path, name: str, size: int) -> None:
    """Reject an image with an invalid name or size."""
    if not is_utf8(name):
        raise UserError(
            f"{shown(archive)}: the name of member `{shown(name)}` is not UTF-8. Unpack the archive into a folder "
            "images/, rename that file, and remove the archive from the data folder."
        )
    check_size(f"{shown(archive)}: member `{shown(name)}`", size)


def check_size(name: str, size: int) -> None:
    """Check the size of an image file before it is read.

    Raises:
        UserError: it is too large.
    """
    if size > MAX_BYTES:
        raise UserError(
            f"{name} has {size:,} bytes; the limit for an image is {MAX_BYTES:,}. Remove it from the data folder."
        )


def _check_growth(archive: Path, packed: int, unpacked: int) -> None:
    if unpacked > max(EXPANSION_CHECK_BYTES, MAX_EXPANSION * packed):
        raise UserError(
            f"{shown(archive)} unpacks to more than {MAX_EXPANSION} times its size, like a decompression "
            f"bomb. {DOWNLOAD_AGAIN}"
        )


class Gunzip:
    """Unpacks a gzipped stream and verifies its checksums. (gzip.GzipFile would read only 8 kB at a time.)"""

    def __init__(self, archive: Path, stream: Readable) -> None:
        self._archive, self._stream = archive, stream
        self._unpacker: Any = None
        self._packed = self._unpacked = 0

    def read(self, size: int, /) -> bytes:
        """Up to `size` bytes; none at the end."""
        while True:
            if self._unpacker is None or self._unpacker.eof:  # another gzip member may follow, or zeros
                block = b"" if self._unpacker is None else self._unpacker.unused_data.lstrip(b"\0")
                while not block and (more := self._next()):
                    block = more.lstrip(b"\0")
                if not block:
                    if self._unpacker is None:
                        raise EOFError("the compressed stream is empty")
                    return b""
                # ISA-L refuses some headers that it gets in two parts.
                while len(block) < GZIP_HEADER_BYTES and (more := self._next()):
                    block += more
                self._unpacker = inflate.gzip_unpacker()
            else:
                block = self._unpacker.unconsumed_tail or self._next()
                if not block:
                    raise EOFError("the compressed stream ends too early")
            content: bytes = self._unpacker.decompress(block, size)
            inflate.free_vector_registers()
            self._unpacked += len(content)
            _check_growth(self._archive, self._packed, self._unpacked)
            if content:
                return content

    def _next(self) -> bytes:
        block = self._stream.read(BLOCK)
        self._packed += len(block)
        return block


class _StrictTarInfo(tarfile.TarInfo):
    """Raises an error for a damaged header. tarfile would treat it as the end of the archive and skip images."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        if not buf:
            raise tarfile.ReadError("the end mark is missing")
        try:
            header = super().frombuf(buf, encoding, errors)
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError) as error:  # type: ignore[attr-defined]
            raise tarfile.ReadError(str(error)) from None
        if header.size < 0:
            raise tarfile.ReadError("negative size")
        return header


class _HeaderGuard:
    """A stream that raises an error if a header is too long."""

    def __init__(self, stream: Readable) -> None:
        self._stream, self.position = stream, 0
        self.limit: float = MAX_HEADER_BYTES + 2 * BLOCK  # tarfile reads a block ahead

    def read(self, size: int, /) -> bytes:
        """Up to `size` bytes; none at the end."""
        block = self._stream.read(size)
        self.position += len(block)
        if self.position > self.limit:
            raise tarfile.ReadError(f"a header of more than {MAX_HEADER_BYTES:,} bytes")
        return block


class _Content:
    """The content of a member of a tar that is read as a stream: the bytes after its header."""

    def __init__(self, stream: Readable, size: int) -> None:
        self._stream, self._left = stream, size

    def read(self, size: int, /) -> bytes:
        """Up to `size` bytes; none at the end.

        Raises:
            tarfile.ReadError: the archive ends before.
        """
        size = min(size, self._left)
        block = self._stream.read(size)
        if len(block) < size:
            raise tarfile.ReadError("unexpected end of data")
        self._left -= size
        return block


def _tar_members(
    archive: Path, packed: Readable, wanted: Sequence[int] | None, may_be_image: Callable[[str], bool]
) -> Iterator[Member]:
    start = wanted[0] if wanted else 0
    chosen = None if wanted is None else set(wanted)
    _skip(packed, start)
    guarded = _HeaderGuard(packed)
    options = {"bufsize": BLOCK, "tarinfo": _StrictTarInfo, "encoding": "utf-8", "errors": "surrogateescape"}
    with tarfile.open(fileobj=guarded, mode="r|", **options) as tar:  # type: ignore[call-overload]
        while (member := tar.next()) is not None:
            tar.members.clear()  # it would keep all members in memory
            guarded.limit = math.inf
            if member.size < 0:  # possible in an extended header
                raise tarfile.ReadError("negative size")
            _check_member(archive, member.name, member.isfile() or member.isdir())
            if member.isfile() and may_be_image(member.name):
                offset = start + member.offset
                if chosen is None or offset in chosen:
                    _check_image(archive, member.name, member.size)
                    # extractfile would copy everything twice more.
                    stream = (
                        tar.extractfile(member) if member.issparse() else _Content(tar.fileobj, member.size)
                    )
                    yield Member(member.name, offset, member.size, stream)
                if wanted and offset >= wanted[-1]:
                    return
            guarded.limit = max(tar.offset, guarded.position) + MAX_HEADER_BYTES + 2 * BLOCK
        guarded.limit = math.inf
        while block := tar.fileobj.read(BLOCK):  # gzip verifies its checksum at the very end
            if block.strip(b"\0"):
                raise UserError(
                    f"{shown(archive)} has data after its end mark, as if archives were concatenated. Keep them "
                    "separate, or unpack it with `tar --ignore-zeros` into a folder images/."
                )


def _skip(stream: Readable, size: int) -> None:
    if isinstance(stream, Gunzip):
        while size and (block := stream.read(min(BLOCK, size))):  # the file may have been truncated
            size -= len(block)
    elif size:
        stream.seek(size)  # type: ignore[attr-defined]


def _zip_members(
    archive: Path, stream: IO[bytes], wanted: Sequence[int] | None, may_be_image: Callable[[str], bool]
) -> Iterator[Member]:
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
            if not folder and may_be_image(name):
                _check_entry(archive, name, entry)
                images.append((name, entry))
        _check_growth(archive, size, sum(entry.file_size for _, entry in images))
        chosen = None if wanted is None else set(wanted)
        for name, entry in images:
            if chosen is None or entry.header_offset in chosen:
                with packed.open(entry) as content:
                    yield Member(name, entry.header_offset, entry.file_size, content)


def _check_count(stream: IO[bytes], listed: int, comment: int) -> None:
    """Compare the number of listed members with the number in the last record of a zip; zipfile does not."""
    stream.seek(-22 - comment, 2)
    record = stream.read(12)
    expected = int.from_bytes(record[10:], "little")
    if record.startswith(b"PK\5\6") and expected not in (0xFFFF, listed % 0x10000):
        raise zipfile.BadZipFile(f"it lists {listed} of {expected} members")


def _zip_name(entry: zipfile.ZipInfo) -> str:
    """Decode a member's name. Without the UTF-8 flag it is code page 437, or UTF-8 written by macOS without
    the flag.
    """
    name = entry.filename
    if not entry.flag_bits & 0x800:
        with suppress(UnicodeError):
            name = name.encode("cp437").decode()
    return name.replace("\\", "/")  # written by some Windows tools


def _check_entry(archive: Path, name: str, entry: zipfile.ZipInfo) -> None:
    label = f"{shown(archive)}: member `{shown(name)}`"
    if entry.flag_bits & 0x41:
        raise UserError(
            f"{label} is encrypted. Unpack the archive with its password, and remove it from the data folder."
        )
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise UserError(
            f"{label} is compressed by method {entry.compress_type}; only stored and deflated members are supported. "
            "Unpack the archive into a folder images/, and remove it from the data folder."
        )
    _check_image(archive, name, entry.file_size)
