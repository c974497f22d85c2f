"""Names the raw data by its content, not by its place: two folders with the same files have the same manifest."""

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ral.data.images.file_hashes import FileHashCache
from ral.data.images.file_names import check_names, check_root, is_archive, is_image, shown
from ral.data.images.locate import list_archive, list_files
from ral.errors import UserError


def read_manifest(
    root: Path, progress: Callable[[int], None], memory: FileHashCache | None = None
) -> dict[str, Any]:
    """What is in a data folder.

    Args:
        root: the data folder; subfolders that are links are followed, names that begin with a dot are left out.
        progress: told how many bytes were read, or need not be read again.
        memory: what is known of files read before; None reads everything.

    Returns:
        `files`: path relative to `root` -> bytes and sha256, of tables, lists and archives. `folders`: the same for
        the single images of a folder as a whole, with their number; its sha256 is of the lines "hash name", by name.
        No time and no absolute path is in it.

    Raises:
        UserError: the folder is missing or holds nothing, a name is not UTF-8, an archive of images is damaged, or an
            image larger than one can be.
        OSError: a file or folder cannot be read.
    """
    memory = memory or FileHashCache(None)
    files, loose = {}, []
    for folder, names in walk(root):
        for name in names:
            path = (folder / name).relative_to(root).as_posix()
            if is_image(name):
                loose.append(path)
            elif folder == root and is_archive(name):  # read through once, for its images and its hash
                files[path] = list_archive(root / path, progress, memory)[1]
            else:
                files[path] = _file(root / path, progress, memory)
    images = list_files(root, loose, progress, memory)
    places = [path.rpartition("/")[0] or "." for path in loose]
    folders = {str(place): _folder(rows) for place, rows in images.groupby(np.array(places, object))}
    if not files and not folders:
        raise UserError(f"{shown(root)} holds no files. Put the data there, or correct data.root.")
    return {"files": files, "folders": folders}


def manifest_bytes(root: Path) -> int:
    """Bytes that `read_manifest` tells its progress."""
    return sum((folder / name).stat().st_size for folder, names in walk(root) for name in names)


def walk(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Folders below `root` with the names of their files, both sorted. Pipes, devices and broken links are no files.

    Raises:
        UserError: `root` is missing, or a name is not UTF-8.
        OSError: a folder cannot be read.
    """
    check_root(root)

    def fail(error: OSError) -> None:
        raise error

    seen: set[str] = set()
    for here, folders, names in os.walk(root, onerror=fail, followlinks=True):
        real = os.path.realpath(here)
        if real in seen:
            folders[:] = []
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        names = sorted(n for n in names if not n.startswith(".") and os.path.isfile(os.path.join(here, n)))
        check_names(Path(here), [*folders, *names])
        yield Path(here), names


def _file(path: Path, progress: Callable[[int], None], memory: FileHashCache) -> dict[str, Any]:
    size = path.stat().st_size
    digest = memory.sha256(path)
    progress(size)
    return {"bytes": size, "sha256": digest}


def _folder(images: pd.DataFrame) -> dict[str, Any]:
    names = [path.rpartition("/")[2] for path in images["path"]]
    lines = "".join(f"{digest} {name}\n" for digest, name in zip(images["hash"], names, strict=True))
    return {
        "images": len(images),
        "bytes": int(images["bytes"].sum()),
        "sha256": hashlib.sha256(lines.encode()).hexdigest(),
    }
