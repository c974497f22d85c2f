"""Finds the films of a data folder (tar archives or unpacked) and reads them in the order they are stored."""

import gzip
import hashlib
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO

import pandas as pd

from ral.errors import UserError

ARCHIVE_ENDINGS = (".tar.gz", ".tgz", ".tar")
FILM_ENDINGS = (".png", ".jpg", ".jpeg")


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


def list_films(root: Path, progress: Callable[[int], None]) -> tuple[pd.DataFrame, dict[str, dict]]:
    """List every film below `root`.

    Args:
        root: the data folder.
        progress: told how many bytes were read since the last call.

    Returns:
        Films in stored order, with columns image_id (the file's name), path (archive or file, relative to
        `root`), member (the name inside the archive, or "") and bytes; and, per archive, `{"bytes", "sha256"}`.

    Raises:
        UserError: no films, a broken archive, an unsafe member, the same film twice.
    """
    archives, folders = find_sources(root)
    rows: list[tuple[str, str, str, int]] = []
    hashes: dict[str, dict] = {}
    for archive in archives:
        name = archive.relative_to(root).as_posix()
        with archive.open("rb") as stream:
            counted = _CountedHash(stream, progress)
            for member, _ in _members(archive, counted):
                rows.append((PurePosixPath(member.name).name, name, member.name, member.size))
        hashes[name] = {"bytes": counted.bytes, "sha256": counted.digest.hexdigest()}
    for folder in folders:
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            if entry.name.lower().endswith(FILM_ENDINGS) and entry.is_file():  # a broken link is no film
                size = entry.stat().st_size
                progress(size)
                rows.append((entry.name, Path(entry.path).relative_to(root).as_posix(), "", size))
    films = pd.DataFrame(rows, columns=["image_id", "path", "member", "bytes"])
    twice = films[films["image_id"].duplicated(keep=False)].sort_values("image_id")
    if len(twice):
        first, second = twice["path"].iloc[0], twice["path"].iloc[1]
        raise UserError(
            f"{root}: film {twice['image_id'].iloc[0]} is there twice, in {first} and in {second}. Keep one."
        )
    return films, hashes


def total_bytes(root: Path) -> int:
    """Bytes that `list_films` reads or counts, for its progress."""
    archives, folders = find_sources(root)
    size = sum(path.stat().st_size for path in archives)
    return size + sum(
        entry.stat().st_size for folder in folders for entry in os.scandir(folder) if entry.is_file()
    )


def read_films(root: Path, path: str, wanted: set[str]) -> Iterator[tuple[str, bytes]]:
    """Yield (image id, file content) of the `wanted` films of one archive, read once from front to back.

    Raises:
        UserError: the archive is broken or has an unsafe member.
    """
    archive = root / path
    with archive.open("rb") as stream:
        for member, tar in _members(archive, stream):
            image_id = PurePosixPath(member.name).name
            if image_id in wanted:
                content = tar.extractfile(member)
                assert content is not None  # _members yields plain files only
                yield image_id, content.read()


def _members(
    archive: Path, stream: IO[bytes] | _CountedHash
) -> Iterator[tuple[tarfile.TarInfo, tarfile.TarFile]]:
    """Yield the films of an archive in order, refusing what a well-made archive of films does not hold."""
    packed = stream if archive.name.endswith(".tar") else gzip.GzipFile(fileobj=stream, mode="rb")  # type: ignore[arg-type]
    try:
        with tarfile.open(fileobj=packed, mode="r|") as tar:  # type: ignore[call-overload]
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
                    yield member, tar
        while packed.read(1 << 20):  # gzip compares its checksum at the very end, behind the archive's own
            pass
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        raise UserError(f"{archive} is truncated or damaged ({error}). Download it again.") from None
