"""Finds the images of a data folder, in archives or unpacked, and reads them in stored order."""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import IO

import pandas as pd

from ral.data.file_hash import FileHash
from ral.data.images import npz
from ral.data.images.archives import BLOCK, Readable, check_size, explain_damage, is_zip, members
from ral.data.images.file_hashes import FileHashCache, FileStat
from ral.data.images.file_names import (
    ARCHIVE_ENDINGS,
    IMAGE_ENDINGS,
    check_names,
    check_root,
    is_archive,
    is_image,
    is_of_images,
    shown,
)
from ral.errors import UserError

COLUMNS = ["image_id", "path", "member", "offset", "bytes", "hash"]


def find_sources(root: Path) -> tuple[list[Path], list[Path]]:
    """Archives and folders below `root` with images, each sorted by name.

    Folders are `images/` and, for archives unpacked separately, `images_*/` or `images_*/images/`. If a
    folder `images*/` has no image but exactly one subfolder with images, the subfolder is used.

    Raises:
        UserError: there are none.
        OSError: the folder cannot be read.
    """
    check_root(root)
    entries = sorted(root.iterdir())
    check_names(root, [path.name for path in entries if is_of_images(path.name)])
    archives = [path for path in entries if is_archive(path.name) and path.is_file()]
    folders = [_image_folder(path) for path in entries if is_of_images(path.name) and path.is_dir()]
    if not archives and not folders:
        raise UserError(
            f"{shown(root)} has no images: neither archives images*.tar.gz, .tgz, .tar or .zip nor a folder images/. "
            f"{_other_sources(entries)}"
        )
    return archives, folders


def _image_folder(folder: Path) -> Path:
    """The folder itself, or its subfolder with the images."""
    if (folder / "images").is_dir():
        return folder / "images"
    if any(_image_entries(folder)):
        return folder
    with os.scandir(folder) as entries:
        subfolders = [
            folder / entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir()
        ]
    with_images = [path for path in subfolders if any(_image_entries(path))]
    return with_images[0] if len(with_images) == 1 else folder


def _image_entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Yield the images of a folder, unordered; links are followed, broken links are skipped."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_image(entry.name) and (entry.is_file(follow_symlinks=False) or os.path.isfile(entry.path)):
                yield entry


def _other_sources(entries: Sequence[Path]) -> str:
    """Remedy for a data folder without images, depending on what it contains."""
    candidates = [
        path for path in entries if is_of_images(path.name) and not path.name.lower().endswith(".csv")
    ]
    candidates += [
        path
        for path in entries
        if path.name.lower().endswith((*ARCHIVE_ENDINGS, ".tar.bz2", ".tar.xz", ".7z", ".rar"))
    ]
    if not candidates:
        return "Put them there (for your own table: or set data.table.path to the column with their paths)."
    first = candidates[0]
    if first.is_symlink() and not first.exists():
        return f"{shown(first.name)} is a link to {shown(os.readlink(first))}, which does not exist."
    return f"{shown(first.name)} is not read: unpack it into a folder images/."


def list_images(
    root: Path, progress: Callable[[int], None], hash_cache: FileHashCache | None = None
) -> tuple[pd.DataFrame, dict[str, FileHash]]:
    """List every image below `root` with the hash of its content.

    Args:
        root: the data folder.
        progress: called with the number of bytes read, or found in the cache, since the last call.
        hash_cache: hashes of files read earlier; None reads everything.

    Returns:
        Images in stored order, with columns image_id (the file name), path (archive or file, relative to
        `root`), member (the name inside the archive, or ""), offset (of the member in the unpacked tar or
        in the zip, or -1), bytes, and hash (`content_hash`); and the hash of each archive.

    Raises:
        UserError: there are no images, an archive is damaged, a member is unsafe, or an image id occurs twice.
    """
    archives, folders = find_sources(root)
    hash_cache = hash_cache or FileHashCache(None)
    parts, hashes = [], {}
    for archive in archives:
        name = archive.relative_to(root).as_posix()
        listed, hashes[name] = list_archive(archive, progress, hash_cache)
        parts.append(listed.assign(path=name))
    loose = [
        (name, (folder / name).relative_to(root).as_posix()) for folder in folders for name in _images(folder)
    ]
    if loose:
        files = list_files(root, [path for _, path in loose], progress, hash_cache)
        parts.append(files.assign(image_id=[image_id for image_id, _ in loose]))
    images = pd.concat(parts, ignore_index=True)[COLUMNS] if parts else pd.DataFrame(columns=COLUMNS)
    if images.empty:
        raise UserError(_no_image(root, [*archives, *folders]))
    duplicates = images[images["image_id"].duplicated(keep=False)].sort_values("image_id", kind="stable")
    if len(duplicates):
        locations = duplicates["path"].iloc[:2].tolist()
        if locations[0] == locations[1]:
            locations = duplicates["member"].iloc[:2].tolist()
        raise UserError(
            f"{shown(root)}: image {shown(duplicates['image_id'].iloc[0])} exists twice, in "
            f"{shown(locations[0])} and in "
            f"{shown(locations[1])}. Keep one."
        )
    return images, hashes


def _images(folder: Path) -> list[str]:
    names = sorted(entry.name for entry in _image_entries(folder))
    check_names(folder, names)
    return names


def _no_image(root: Path, sources: Sequence[Path]) -> str:
    """Error message for archives and folders without a single image."""
    lines = [f"{shown(root)} has no images: none is in {shown(', '.join(path.name for path in sources))}."]
    for folder in (path for path in sources if path.is_dir()):
        contents = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
        if contents:
            lines.append(
                f"{shown(folder)} has {len(contents):,} entries, the first is {shown(contents[0].name)}."
            )
    lines.append(f"Names of images end in {', '.join(IMAGE_ENDINGS)} and do not begin with a dot.")
    return " ".join(lines)


def content_hash(content: bytes) -> str:
    """Hash of an image's content: the first 32 hexadecimal digits of its SHA-256."""
    return hashlib.sha256(content).hexdigest()[:32]


def stream_hash(stream: Readable) -> str:
    """`content_hash` of what a stream has, of which only a block is in hash_cache."""
    digest = hashlib.sha256()
    while block := stream.read(BLOCK):
        digest.update(block)
    return digest.hexdigest()[:32]


class _HashingStream:
    """A stream that hashes and counts the bytes read through it, so that an archive is listed and hashed in
    one pass.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.digest = hashlib.sha256()
        self.bytes = 0

    def read(self, size: int, /) -> bytes:
        block = self._stream.read(size)
        self.digest.update(block)
        self.bytes += len(block)
        return block


def list_archive(
    archive: Path, progress: Callable[[int], None], hash_cache: FileHashCache
) -> tuple[pd.DataFrame, FileHash]:
    """The images of one archive (without the column path), and its hash; see `list_images`."""
    cached = hash_cache.archive(archive)
    if cached is not None:
        progress(cached[1].bytes)
        return cached
    file_stat, rows, reported = FileStat.of(archive), [], 0
    with archive.open("rb") as stream, explain_damage(archive):
        hashed = _HashingStream(stream)
        # The directory of a zip is at its end, so a zip is read twice; other archives are read once.
        for name, offset, size, content in members(archive, stream if is_zip(archive) else hashed):
            rows.append((PurePosixPath(name).name, name, offset, size, stream_hash(content)))
            position = offset if is_zip(archive) else hashed.bytes
            progress(position - reported)
            reported = position
        if is_zip(archive):
            stream.seek(0)
        while hashed.read(BLOCK):
            pass
    progress(hashed.bytes - reported)
    images = pd.DataFrame(rows, columns=["image_id", "member", "offset", "bytes", "hash"])
    summary = FileHash(bytes=hashed.bytes, sha256=hashed.digest.hexdigest())
    hash_cache.put_archive(archive, file_stat, images, summary)
    return images, summary


def list_files(
    root: Path, paths: Sequence[str], progress: Callable[[int], None], hash_cache: FileHashCache
) -> pd.DataFrame:
    """List single images by their paths relative to `root`, in that order: all columns of `list_images` but image_id.

    Raises:
        UserError: one exceeds the size limit.
        OSError: one is missing or cannot be read.
    """
    cached = hash_cache.images(root)
    file_stats, hashes = [], []
    for path in paths:
        file_stat = FileStat.of(root / path)
        check_size(f"Image {shown(root / path)}", file_stat.size)
        digest = cached.get((path, file_stat))
        if digest is None:
            with (root / path).open("rb") as stream:
                digest = stream_hash(stream)
        hashes.append(digest)
        file_stats.append(file_stat)
        progress(file_stat.size)
    if paths:
        hash_cache.put_images(root, paths, file_stats, hashes)
    sizes = [file_stat.size for file_stat in file_stats]
    frame = {"path": list(paths), "member": "", "offset": -1, "bytes": sizes, "hash": hashes}
    return pd.DataFrame(frame, index=range(len(paths)))


def total_bytes(root: Path) -> int:
    """Total bytes that `list_images` reports to its progress callback."""
    archives, folders = find_sources(root)
    size = sum(path.stat().st_size for path in archives)
    return size + sum(entry.stat().st_size for folder in folders for entry in _image_entries(folder))


def read_images(root: Path, images: pd.DataFrame) -> Iterator[bytes]:
    """Yield the content of images of one archive, or of single files, in stored order.

    An archive is read once, from the first of these images to the last. A plain tar is read from there, a
    gzipped one is also unpacked up to there, and of a zip only these images are read.

    Args:
        root: the data folder.
        images: rows of `list_images`, in its order; all of one archive, or all single files.

    Raises:
        UserError: an image has changed or disappeared since it was listed, or the archive is damaged or unsafe.
    """
    path = images["path"].iloc[0]
    if not images["member"].iloc[0]:
        for path, digest in zip(images["path"].tolist(), images["hash"].tolist(), strict=True):
            yield _checked(read_file(root / path), digest, f"Image {shown(root / path)}")
    elif path.endswith(".npz"):
        yield from npz.read_images(root / path, images["member"].tolist())
    else:
        yield from _read_archive(root / path, images)


def read_file(path: Path) -> bytes:
    """Read an image that is a single file.

    Raises:
        UserError: it no longer exists, or exceeds the size limit.
        OSError: it cannot be read.
    """
    try:
        check_size(f"Image {shown(path)}", path.stat().st_size)
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"Image {shown(path)} no longer exists. Run validate again: dvc repro.") from None


def _read_archive(archive: Path, images: pd.DataFrame) -> Iterator[bytes]:
    try:
        stream = archive.open("rb")
    except FileNotFoundError:
        raise UserError(f"{shown(archive)} no longer exists. Run validate again: dvc repro.") from None
    with stream, explain_damage(archive):
        selected = members(archive, stream, images["offset"].tolist())
        for name, digest in zip(images["member"].tolist(), images["hash"].tolist(), strict=True):
            member = next(selected, None)
            image = shown(PurePosixPath(name).name)
            if member is None or member.name != name:
                raise UserError(
                    f"{shown(archive)}: image {image} no longer exists. Run validate again: dvc repro."
                )
            content = member.stream.read(member.size)
            yield _checked(content, digest, f"Image {image} in {shown(archive)}")


def _checked(content: bytes, digest: str, name: str) -> bytes:
    if content_hash(content) != digest:
        raise UserError(f"{name} has changed since it was validated. Run validate again: dvc repro.")
    return content
