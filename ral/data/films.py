"""Finds the films of a data folder (tar archives or unpacked) and reads them in the order they are stored."""

import hashlib
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, Any

import pandas as pd

from ral.data import npz
from ral.data.memory import Memory, Stamp
from ral.errors import UserError

COLUMNS = ["image_id", "path", "member", "offset", "bytes", "hash"]

ARCHIVE_ENDINGS = (".tar.gz", ".tgz", ".tar")
FILM_ENDINGS = (".png", ".jpg", ".jpeg", ".dcm", ".dicom")

# Bytes read at once from an archive.
BLOCK = 1 << 20


class _CountedHash:
    """A stream that hashes and counts what is read through it, so that listing an archive also names its content."""

    def __init__(self, stream: IO[bytes], progress: Callable[[int], None]) -> None:
        self._stream, self._progress = stream, progress
        self.digest = hashlib.sha256()
        self.bytes = 0

    def read(self, size: int = -1) -> bytes:
        block = self._stream.read(size)
        self.digest.update(block)
        self.bytes += len(block)
        self._progress(len(block))
        return block


class _Unpacked:
    """A gzipped stream, unpacked as it is read; checksums are compared. (gzip.GzipFile reads 8 kB at a time.)"""

    def __init__(self, stream: IO[bytes] | _CountedHash) -> None:
        self._stream, self._unpacker = stream, zlib.decompressobj(wbits=31)

    def read(self, size: int) -> bytes:
        """Up to `size` bytes; none at the end."""
        while True:
            if self._unpacker.eof:  # another gzip member may follow, or zeros
                block = self._unpacker.unused_data.lstrip(b"\0") or self._stream.read(BLOCK).lstrip(b"\0")
                if not block:
                    return b""
                self._unpacker = zlib.decompressobj(wbits=31)
            else:
                block = self._unpacker.unconsumed_tail or self._stream.read(BLOCK)
                if not block:
                    raise EOFError("the compressed stream ends too early")
            content = self._unpacker.decompress(block, size)
            if content:
                return content


def find_sources(root: Path) -> tuple[list[Path], list[Path]]:
    """Archives and folders below `root` that hold films, each sorted by name.

    Folders are `images/` and, as unpacked one by one, `images_*/` or `images_*/images/`.

    Raises:
        UserError: there are neither.
    """
    archives = sorted(
        path for path in root.glob("images*") if path.name.endswith(ARCHIVE_ENDINGS) and path.is_file()
    )
    folders = []
    for folder in sorted(path for path in root.glob("images*") if path.is_dir()):
        inner = folder / "images"
        folders.append(inner if inner.is_dir() else folder)
    if not archives and not folders:
        raise UserError(
            f"{root} has no films: neither images*.tar.gz archives nor an images/ folder. Put them there."
        )
    return archives, folders


def list_films(
    root: Path, progress: Callable[[int], None], memory: Memory | None = None
) -> tuple[pd.DataFrame, dict[str, dict]]:
    """List every film below `root` and name its content.

    Args:
        root: the data folder.
        progress: told how many bytes were read, or need not be read again, since the last call.
        memory: what is known of files read before; None reads everything.

    Returns:
        Films in stored order, with columns image_id (the file's name), path (archive or file, relative to
        `root`), member (the name inside the archive, or ""), offset (where the member begins in the unpacked
        archive, or -1), bytes, and hash (`content_hash`); and, per archive, `{"bytes", "sha256"}`.

    Raises:
        UserError: no films, a broken archive, an unsafe member, the same film twice.
    """
    archives, folders = find_sources(root)
    memory = memory or Memory(None)
    parts, hashes = [], {}
    for archive in archives:
        name = archive.relative_to(root).as_posix()
        members, hashes[name] = list_archive(archive, progress, memory)
        parts.append(members.assign(path=name))
    loose = [
        (entry.name, (folder / entry.name).relative_to(root).as_posix())
        for folder in folders
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name)
        if entry.name.lower().endswith(FILM_ENDINGS) and entry.is_file()  # a broken link is no film
    ]
    if loose:
        files = list_files(root, [path for _, path in loose], progress, memory)
        parts.append(files.assign(image_id=[image_id for image_id, _ in loose]))
    films = pd.concat(parts, ignore_index=True)[COLUMNS] if parts else pd.DataFrame(columns=COLUMNS)
    twice = films[films["image_id"].duplicated(keep=False)].sort_values("image_id", kind="stable")
    if len(twice):
        first, second = twice["path"].iloc[0], twice["path"].iloc[1]
        raise UserError(
            f"{root}: film {twice['image_id'].iloc[0]} is there twice, in {first} and in {second}. Keep one."
        )
    return films, hashes


def content_hash(content: bytes) -> str:
    """Name of a film's content: the first 32 hexadecimal digits of its SHA-256."""
    return hashlib.sha256(content).hexdigest()[:32]


def list_archive(
    archive: Path, progress: Callable[[int], None], memory: Memory
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The films of one archive (no column path), and its bytes and sha256; see `list_films`."""
    known = memory.archive(archive)
    if known is not None:
        progress(known[1]["bytes"])
        return known
    stamp, rows = Stamp.of(archive), []
    with archive.open("rb") as stream:
        counted = _CountedHash(stream, progress)
        for member, content in _members(archive, counted):
            name = member.name
            rows.append((PurePosixPath(name).name, name, member.offset, member.size, content_hash(content)))
    films = pd.DataFrame(rows, columns=["image_id", "member", "offset", "bytes", "hash"])
    facts = {"bytes": counted.bytes, "sha256": counted.digest.hexdigest()}
    memory.keep_archive(archive, stamp, films, facts)
    return films, facts


def list_files(
    root: Path, paths: Sequence[str], progress: Callable[[int], None], memory: Memory
) -> pd.DataFrame:
    """Single films by their paths relative to `root`, in that order: all columns of `list_films` but image_id.

    Raises:
        OSError: one is missing or cannot be read.
    """
    known = memory.films(root)
    stamps, hashes = [], []
    for path in paths:
        stamp = Stamp.of(root / path)
        hashes.append(known.get((path, stamp)) or content_hash((root / path).read_bytes()))
        stamps.append(stamp)
        progress(stamp.size)
    if paths:
        memory.keep_films(root, paths, stamps, hashes)
    sizes = [stamp.size for stamp in stamps]
    frame = {"path": list(paths), "member": "", "offset": -1, "bytes": sizes, "hash": hashes}
    return pd.DataFrame(frame, index=range(len(paths)))


def total_bytes(root: Path) -> int:
    """Bytes that `list_films` reads or counts, for its progress."""
    archives, folders = find_sources(root)
    size = sum(path.stat().st_size for path in archives)
    return size + sum(
        entry.stat().st_size for folder in folders for entry in os.scandir(folder) if entry.is_file()
    )


def add_content(
    root: Path, films: pd.DataFrame, progress: Callable[[int], None], memory: Memory | None = None
) -> pd.DataFrame:
    """Give films that a source found by itself (image_id, path, member "" and bytes) the columns offset and hash.

    Args:
        root: the data folder.
        films: single files, in the order in which they are to be stored.
        progress: told how many bytes were read, or need not be read again.
        memory: what is known of files read before.

    Returns:
        The films with all columns of `list_films`.

    Raises:
        OSError: a film cannot be read.
    """
    found = list_files(root, films["path"].tolist(), progress, memory or Memory(None))
    return found.assign(image_id=films["image_id"].to_numpy())[COLUMNS]


def read_films(root: Path, films: pd.DataFrame) -> Iterator[bytes]:
    """Yield the content of films of one archive, or of single files, in stored order.

    An archive is read once, from the first of these films to the last: a plain one begins there, a gzipped one is
    unpacked up to there.

    Args:
        root: the data folder.
        films: rows of `list_films`, in its order; all of one archive, or all single files.

    Raises:
        UserError: a film has changed or gone since it was listed, or the archive is broken or has an unsafe member.
    """
    if not films["member"].iloc[0]:
        for path, digest in zip(films["path"].tolist(), films["hash"].tolist(), strict=True):
            try:
                content = (root / path).read_bytes()
            except FileNotFoundError:
                raise UserError(f"Film {root / path} has gone. Run validate again: dvc repro.") from None
            yield _checked(content, digest, f"Film {root / path}")
        return
    archive = root / films["path"].iloc[0]
    if archive.suffix == ".npz":
        yield from npz.read_films(archive, films["member"].tolist())
        return
    wanted = iter(zip(films["member"], films["hash"], strict=True))
    member, digest = next(wanted)
    with archive.open("rb") as stream:
        for found, content in _members(archive, stream, int(films["offset"].iloc[0])):
            if found.name == member:
                yield _checked(content, digest, f"Film {PurePosixPath(member).name} in {archive}")
                try:
                    member, digest = next(wanted)
                except StopIteration:
                    return
    raise UserError(f"{archive}: film {PurePosixPath(member).name} has gone. Run validate again: dvc repro.")


def _checked(content: bytes, digest: str, name: str) -> bytes:
    if content_hash(content) != digest:
        raise UserError(f"{name} is not what it was when it was validated. Run validate again: dvc repro.")
    return content


def _members(
    archive: Path, stream: IO[bytes] | _CountedHash, start: int = 0
) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    """Yield the films of an archive and their content, in order and from a member that begins at `start`.

    What a well-made archive of films does not hold is refused.
    """
    plain = archive.name.endswith(".tar")
    packed = stream if plain else _Unpacked(stream)
    try:
        if plain and start:
            stream.seek(start)  # type: ignore[union-attr]
        elif start:
            skipped = 0
            while skipped < start:
                skipped += (
                    len(packed.read(min(BLOCK, start - skipped))) or start
                )  # the archive has become shorter
        with tarfile.open(fileobj=packed, mode="r|", bufsize=BLOCK) as tar:  # type: ignore[call-overload]
            for member in tar:
                parts = PurePosixPath(member.name).parts
                if member.name.startswith("/") or ".." in parts:
                    raise UserError(
                        f"{archive}: member `{member.name}` points outside the archive. "
                        "Do not use this archive: get it again from its owner."
                    )
                if member.isdir():
                    continue
                if not member.isfile():
                    raise UserError(
                        f"{archive}: member `{member.name}` is a link or device, not a film. "
                        "Do not use this archive: get it again from its owner."
                    )
                if member.name.lower().endswith(FILM_ENDINGS):
                    content = tar.extractfile(member)
                    assert content is not None  # it is so of links and folders only
                    yield member, content.read()
        while packed.read(BLOCK):  # gzip compares its checksum at the very end, behind the archive's own
            pass
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        raise UserError(f"{archive} is truncated or damaged ({error}). Download it again.") from None
