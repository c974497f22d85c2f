"""Finds the images of a data folder (archives or unpacked) and reads them in the order they are stored."""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, Any

import pandas as pd

from ral.data.images import npz
from ral.data.images.archives import BLOCK, check_size, is_zip, members, naming_damage
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
    """Archives and folders below `root` that hold images, each sorted by name.

    Folders are `images/` and, as unpacked one by one, `images_*/` or `images_*/images/`; a folder `images*/` without
    an image but with one folder of images in it stands for that one.

    Raises:
        UserError: there are neither.
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
    """The folder itself, or the one in it that has its images."""
    if (folder / "images").is_dir():
        return folder / "images"
    if any(_image_entries(folder)):
        return folder
    with os.scandir(folder) as entries:
        inner = [
            folder / entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir()
        ]
    found = [path for path in inner if any(_image_entries(path))]
    return found[0] if len(found) == 1 else folder


def _image_entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """The images of a folder, in no order; links are followed, and a broken one is no image."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_image(entry.name) and (entry.is_file(follow_symlinks=False) or os.path.isfile(entry.path)):
                yield entry


def _other_sources(entries: Sequence[Path]) -> str:
    """What to do in a data folder without images, by what lies there."""
    near = [path for path in entries if is_of_images(path.name) and not path.name.lower().endswith(".csv")]
    near += [
        path
        for path in entries
        if path.name.lower().endswith((*ARCHIVE_ENDINGS, ".tar.bz2", ".tar.xz", ".7z", ".rar"))
    ]
    if not near:
        return "Put them there."
    if near[0].is_symlink() and not near[0].exists():
        return f"{shown(near[0].name)} is a link to {shown(os.readlink(near[0]))}, which is not there."
    return f"{shown(near[0].name)} is not read: unpack it there into a folder images/."


def list_images(
    root: Path, progress: Callable[[int], None], memory: FileHashCache | None = None
) -> tuple[pd.DataFrame, dict[str, dict]]:
    """List every image below `root` and name its content.

    Args:
        root: the data folder.
        progress: told how many bytes were read, or need not be read again, since the last call.
        memory: what is known of files read before; None reads everything.

    Returns:
        Images in stored order, with columns image_id (the file's name), path (archive or file, relative to
        `root`), member (the name inside the archive, or ""), offset (where the member begins in the unpacked
        archive, or in the zip, or -1), bytes, and hash (`content_hash`); and, per archive, `{"bytes", "sha256"}`.

    Raises:
        UserError: no images, a broken archive, an unsafe member, the same image twice.
    """
    archives, folders = find_sources(root)
    memory = memory or FileHashCache(None)
    parts, hashes = [], {}
    for archive in archives:
        name = archive.relative_to(root).as_posix()
        listed, hashes[name] = list_archive(archive, progress, memory)
        parts.append(listed.assign(path=name))
    loose = [
        (name, (folder / name).relative_to(root).as_posix()) for folder in folders for name in _images(folder)
    ]
    if loose:
        files = list_files(root, [path for _, path in loose], progress, memory)
        parts.append(files.assign(image_id=[image_id for image_id, _ in loose]))
    images = pd.concat(parts, ignore_index=True)[COLUMNS] if parts else pd.DataFrame(columns=COLUMNS)
    if images.empty:
        raise UserError(_no_image(root, [*archives, *folders]))
    twice = images[images["image_id"].duplicated(keep=False)].sort_values("image_id", kind="stable")
    if len(twice):
        places = twice["path"].iloc[:2].tolist()
        if places[0] == places[1]:
            places = twice["member"].iloc[:2].tolist()
        raise UserError(
            f"{shown(root)}: image {shown(twice['image_id'].iloc[0])} is there twice, in {shown(places[0])} and in "
            f"{shown(places[1])}. Keep one."
        )
    return images, hashes


def _images(folder: Path) -> list[str]:
    names = sorted(entry.name for entry in _image_entries(folder))
    check_names(folder, names)
    return names


def _no_image(root: Path, sources: Sequence[Path]) -> str:
    """What to say of archives and folders without a single image."""
    lines = [f"{shown(root)} has no images: none is in {shown(', '.join(path.name for path in sources))}."]
    for folder in (path for path in sources if path.is_dir()):
        inside = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
        if inside:
            lines.append(
                f"{shown(folder)} has {len(inside):,} entries, the first is {shown(inside[0].name)}."
            )
    lines.append(f"Images end in {', '.join(IMAGE_ENDINGS)}, and do not begin with a dot.")
    return " ".join(lines)


def content_hash(content: bytes) -> str:
    """Name of an image's content: the first 32 hexadecimal digits of its SHA-256."""
    return hashlib.sha256(content).hexdigest()[:32]


def stream_hash(stream: IO[bytes]) -> str:
    """`content_hash` of what a stream has, of which only a block is in memory."""
    digest = hashlib.sha256()
    while block := stream.read(BLOCK):
        digest.update(block)
    return digest.hexdigest()[:32]


class _CountedHash:
    """A stream that hashes and counts what is read through it, so that listing an archive also names its content."""

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
    archive: Path, progress: Callable[[int], None], memory: FileHashCache
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The images of one archive (no column path), and its bytes and sha256; see `list_images`."""
    known = memory.archive(archive)
    if known is not None:
        progress(known[1]["bytes"])
        return known
    stamp, rows, told = FileStat.of(archive), [], 0
    with archive.open("rb") as stream, naming_damage(archive):
        counted = _CountedHash(stream)
        # A zip's list of members is at its end, so it is read twice; any other archive once.
        for name, offset, size, content in members(archive, stream if is_zip(archive) else counted):
            rows.append((PurePosixPath(name).name, name, offset, size, stream_hash(content)))
            reached = offset if is_zip(archive) else counted.bytes
            progress(reached - told)
            told = reached
        if is_zip(archive):
            stream.seek(0)
        while counted.read(BLOCK):
            pass
    progress(counted.bytes - told)
    images = pd.DataFrame(rows, columns=["image_id", "member", "offset", "bytes", "hash"])
    facts = {"bytes": counted.bytes, "sha256": counted.digest.hexdigest()}
    memory.keep_archive(archive, stamp, images, facts)
    return images, facts


def list_files(
    root: Path, paths: Sequence[str], progress: Callable[[int], None], memory: FileHashCache
) -> pd.DataFrame:
    """Single images by their paths relative to `root`, in that order: all columns of `list_images` but image_id.

    Raises:
        UserError: one is larger than an image can be.
        OSError: one is missing or cannot be read.
    """
    known = memory.images(root)
    stamps, hashes = [], []
    for path in paths:
        stamp = FileStat.of(root / path)
        check_size(f"Image {shown(root / path)}", stamp.size)
        digest = known.get((path, stamp))
        if digest is None:
            with (root / path).open("rb") as stream:
                digest = stream_hash(stream)
        hashes.append(digest)
        stamps.append(stamp)
        progress(stamp.size)
    if paths:
        memory.keep_images(root, paths, stamps, hashes)
    sizes = [stamp.size for stamp in stamps]
    frame = {"path": list(paths), "member": "", "offset": -1, "bytes": sizes, "hash": hashes}
    return pd.DataFrame(frame, index=range(len(paths)))


def total_bytes(root: Path) -> int:
    """Bytes that `list_images` reads or counts, for its progress."""
    archives, folders = find_sources(root)
    size = sum(path.stat().st_size for path in archives)
    return size + sum(entry.stat().st_size for folder in folders for entry in _image_entries(folder))


def add_content(
    root: Path, images: pd.DataFrame, progress: Callable[[int], None], memory: FileHashCache | None = None
) -> pd.DataFrame:
    """Give images that a source found by itself (image_id, path, member "" and bytes) the columns offset and hash.

    Args:
        root: the data folder.
        images: single files, in the order in which they are to be stored.
        progress: told how many bytes were read, or need not be read again.
        memory: what is known of files read before.

    Returns:
        The images with all columns of `list_images`.

    Raises:
        OSError: an image cannot be read.
    """
    found = list_files(root, images["path"].tolist(), progress, memory or FileHashCache(None))
    return found.assign(image_id=images["image_id"].to_numpy())[COLUMNS]


def read_images(root: Path, images: pd.DataFrame) -> Iterator[bytes]:
    """Yield the content of images of one archive, or of single files, in stored order.

    An archive is read once, from the first of these images to the last: a plain tar begins there, a gzipped one is
    unpacked up to there, and a zip is read at these images only.

    Args:
        root: the data folder.
        images: rows of `list_images`, in its order; all of one archive, or all single files.

    Raises:
        UserError: an image has changed or gone since it was listed, or the archive is broken or has an unsafe member.
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
    """The content of an image that lies there as a single file.

    Raises:
        UserError: it has gone, or is larger than an image can be.
        OSError: it cannot be read.
    """
    try:
        check_size(f"Image {shown(path)}", path.stat().st_size)
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"Image {shown(path)} has gone. Run validate again: dvc repro.") from None


def _read_archive(archive: Path, images: pd.DataFrame) -> Iterator[bytes]:
    try:
        stream = archive.open("rb")
    except FileNotFoundError:
        raise UserError(f"{shown(archive)} has gone. Run validate again: dvc repro.") from None
    with stream, naming_damage(archive):
        found = members(archive, stream, images["offset"].tolist())
        for name, digest in zip(images["member"].tolist(), images["hash"].tolist(), strict=True):
            member = next(found, None)
            image = shown(PurePosixPath(name).name)
            if member is None or member.name != name:
                raise UserError(f"{shown(archive)}: image {image} has gone. Run validate again: dvc repro.")
            content = member.stream.read(member.size)
            yield _checked(content, digest, f"Image {image} in {shown(archive)}")


def _checked(content: bytes, digest: str, name: str) -> bytes:
    if content_hash(content) != digest:
        raise UserError(f"{name} is not what it was when it was validated. Run validate again: dvc repro.")
    return content
