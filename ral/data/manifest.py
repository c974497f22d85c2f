"""Identifies the raw data by its content, not by its location: two folders with the same files have the same
manifest.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ral.data.file_hash import FileHash
from ral.data.images.file_names import check_names, check_root, is_archive, is_image, shown
from ral.errors import UserError
from ral.records import Record

if TYPE_CHECKING:
    import pandas as pd

    from ral.data.images.file_hashes import FileHashCache


class FolderHash(Record):
    """The single images of a folder."""

    images: int
    bytes: int
    sha256: str
    """Hash of the lines "hash name" of the images, sorted by name."""


class Manifest(Record):
    """Content of manifest.json: what a data folder contains, without times and absolute paths."""

    files: Mapping[str, FileHash]
    """Tables, lists and archives, by path relative to the data folder."""
    folders: Mapping[str, FolderHash]
    """The single images, by folder."""
    exclude_patients: str | None = None
    """SHA-256 of the file `data.exclude_patients`, with data.exclude_salt of its key and the file; with it, all files
    are one entry of `folders` without names."""


def read_manifest(
    root: Path, progress: Callable[[int], None], hash_cache: "FileHashCache | None" = None
) -> Manifest:
    """Hash the files of a data folder.

    Args:
        root: the data folder; linked subfolders are followed, names that begin with a dot are skipped.
        progress: called with the number of bytes read or found in the cache.
        hash_cache: hashes of files read earlier; None reads everything.

    Raises:
        UserError: the folder is missing or empty, a name is not UTF-8, an archive is damaged, or an image exceeds the
            size limit.
        OSError: a file or folder cannot be read.
    """
    import numpy as np

    from ral.data.images.file_hashes import FileHashCache
    from ral.data.images.locate import list_archive, list_files

    hash_cache = hash_cache or FileHashCache(None)
    files: dict[str, FileHash] = {}
    loose: list[str] = []
    for folder, names in walk(root):
        for name in names:
            path = (folder / name).relative_to(root).as_posix()
            if is_image(name):
                loose.append(path)
            elif folder == root and is_archive(name):  # one pass for both its images and its hash
                files[path] = list_archive(root / path, progress, hash_cache)[1]
            else:
                files[path] = _file(root / path, progress, hash_cache)
    images = list_files(root, loose, progress, hash_cache)
    folder_names = [path.rpartition("/")[0] or "." for path in loose]
    folders = {str(name): _folder(rows) for name, rows in images.groupby(np.array(folder_names, object))}
    if not files and not folders:
        raise UserError(f"{shown(root)} contains no files. Put the data there, or correct data.root.")
    return Manifest(files=files, folders=folders)


def without_names(manifest: Manifest, exclude_patients: str) -> Manifest:
    """The same content under one hash: names of files and folders may contain the ids of excluded patients.

    Args:
        manifest: result of `read_manifest`.
        exclude_patients: `Exclusions.sha256`.
    """
    entries: list[tuple[str, FileHash | FolderHash]] = [*manifest.files.items(), *manifest.folders.items()]
    lines = "".join(f"{item.sha256} {name}\n" for name, item in entries)
    total = FolderHash(
        images=sum(item.images for item in manifest.folders.values()),
        bytes=sum(item.bytes for _, item in entries),
        sha256=hashlib.sha256(lines.encode()).hexdigest(),
    )
    return Manifest(files={}, folders={".": total}, exclude_patients=exclude_patients)


def manifest_bytes(root: Path) -> int:
    """Total bytes that `read_manifest` reports to its progress callback."""
    return sum((folder / name).stat().st_size for folder, names in walk(root) for name in names)


def walk(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield folders below `root` with the names of their files, both sorted; skips pipes, devices and broken links.

    Raises:
        UserError: `root` is missing, or a name is not UTF-8.
        OSError: a folder cannot be read.
    """
    check_root(root)

    def fail(error: OSError) -> None:
        raise error

    seen: set[str] = set()
    for folder, subfolders, names in os.walk(root, onerror=fail, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            subfolders[:] = []
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        names = sorted(n for n in names if not n.startswith(".") and os.path.isfile(os.path.join(folder, n)))
        check_names(Path(folder), [*subfolders, *names])
        yield Path(folder), names


def _file(path: Path, progress: Callable[[int], None], hash_cache: "FileHashCache") -> FileHash:
    size = path.stat().st_size
    digest = hash_cache.sha256(path)
    progress(size)
    return FileHash(bytes=size, sha256=digest)


def _folder(images: "pd.DataFrame") -> FolderHash:
    names = [path.rpartition("/")[2] for path in images["path"]]
    lines = "".join(f"{digest} {name}\n" for digest, name in zip(images["hash"], names, strict=True))
    return FolderHash(
        images=len(images),
        bytes=int(images["bytes"].sum()),
        sha256=hashlib.sha256(lines.encode()).hexdigest(),
    )
