"""Cache of the hashes of raw files, so that unchanged files are not read again."""

import json
import os
import time
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple, Self

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ral.data.file_hash import FileHash
from ral.files import private_file, private_folder
from ral.files import sha256 as file_sha256
from ral.records import Json

# A file modified less than this many seconds before it was read may change again without a new modification time.
STABLE_AFTER_SECONDS = 2.0

# Increase when the rules for listing an archive change, to invalidate cached lists.
LISTING_VERSION = 2


class FileStat(NamedTuple):
    """File metadata that changes when a file is replaced or modified."""

    size: int
    mtime_ns: int
    inode: int

    @classmethod
    def of(cls, path: Path) -> Self:
        """Current metadata of a file."""
        status = path.stat()
        return cls(status.st_size, status.st_mtime_ns, status.st_ino)

    @property
    def mtime_is_stable(self) -> bool:
        """Whether the modification time is old enough that any later change gives a new one."""
        return time.time() - self.mtime_ns / 1e9 > STABLE_AFTER_SECONDS


class FileHashCache:
    """Hashes of files and lists of images in archives, each valid for the file metadata at the time of reading.

    Args:
        state_dir: private folder of this user, which gets `raw/`; None caches nothing.
    """

    def __init__(self, state_dir: Path | None) -> None:
        self._folder = None if state_dir is None else private_folder(state_dir / "raw")

    def archive(self, path: Path) -> tuple[pd.DataFrame, FileHash] | None:
        """Cached images and hash of an archive; None if it is unknown or has changed."""
        table = self._read(path)
        if table is None:
            return None
        summary = json.loads(table.schema.metadata[b"facts"])
        # Without a listing, the file was only hashed and not read as an archive.
        if summary.pop("listing", None) != LISTING_VERSION or summary.pop("stamp") != list(FileStat.of(path)):
            return None
        return table.replace_schema_metadata().to_pandas(), FileHash.model_validate(summary)

    def put_archive(self, path: Path, file_stat: FileStat, images: pd.DataFrame, summary: FileHash) -> None:
        """Cache the images and hash of an archive.

        Args:
            path: the archive.
            file_stat: its metadata before it was read.
            images: its members.
            summary: its size and hash.
        """
        if file_stat.mtime_is_stable and file_stat == FileStat.of(path):
            entry = summary.to_json() | {"stamp": list(file_stat), "listing": LISTING_VERSION}
            self._write(path, pa.Table.from_pandas(images, preserve_index=False), entry)

    def sha256(self, path: Path) -> str:
        """SHA-256 of a file other than an image; the file is read only if it has changed."""
        table = self._read(path)
        summary = {} if table is None else json.loads(table.schema.metadata[b"facts"])
        file_stat = FileStat.of(path)
        if summary.get("stamp") == list(file_stat) and "sha256" in summary:
            return str(summary["sha256"])
        digest = file_sha256(path)
        if file_stat.mtime_is_stable and file_stat == FileStat.of(path):
            self._write(path, pa.table({}), {"sha256": digest, "stamp": list(file_stat)})
        return digest

    def images(self, root: Path) -> dict[tuple[str, FileStat], str]:
        """Cached hashes of the single images below a data folder, by relative path and file metadata."""
        table = self._read(root)
        if table is None:
            return {}
        columns = (table[name].to_pylist() for name in ("path", "hash", *FileStat._fields))
        return {
            (path, FileStat(*file_stat)): digest for path, digest, *file_stat in zip(*columns, strict=True)
        }

    def put_images(
        self, root: Path, paths: Sequence[str], file_stats: Sequence[FileStat], hashes: Sequence[str]
    ) -> None:
        """Cache hashes of single images; entries of other images are kept."""
        listed = set(paths)
        rows = [
            (path, digest, *file_stat)
            for path, file_stat, digest in zip(paths, file_stats, hashes, strict=True)
            if file_stat.mtime_is_stable
        ]
        rows += [
            (path, digest, *file_stat)
            for (path, file_stat), digest in self.images(root).items()
            if path not in listed
        ]
        frame = pd.DataFrame(rows, columns=["path", "hash", *FileStat._fields])
        self._write(root, pa.Table.from_pandas(frame, preserve_index=False), {})

    def _file(self, path: Path) -> Path | None:
        name = sha256(os.fsencode(path.resolve())).hexdigest()[:32]
        return None if self._folder is None else self._folder / f"{name}.parquet"

    def _read(self, path: Path) -> pa.Table | None:
        file = self._file(path)
        if file is None or not file.is_file():
            return None
        try:
            return pq.read_table(file)
        except (pa.ArrowException, OSError):
            return None  # only a cache: fall back to reading the raw files

    def _write(self, path: Path, table: pa.Table, summary: Mapping[str, Json]) -> None:
        file = self._file(path)
        if file is not None:
            with private_file(file) as draft:
                pq.write_table(table.replace_schema_metadata({"facts": json.dumps(summary)}), draft)
