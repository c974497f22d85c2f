"""What is known of raw files that were read before, so that an unchanged archive is not read again."""

import json
import os
import time
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple, Self

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ral.files import private_file, private_folder
from ral.files import sha256 as file_sha256

# A file that changed less than this many seconds before it was read may change again under the same time stamp.
SETTLED = 2.0

# Goes up when an archive is listed by other rules, so that what was listed by the old ones is listed again.
LISTING = 2


class FileStat(NamedTuple):
    """What changes when a file is replaced or written to."""

    size: int
    mtime_ns: int
    inode: int

    @classmethod
    def of(cls, path: Path) -> Self:
        """The stamp of a file as it is now."""
        found = path.stat()
        return cls(found.st_size, found.st_mtime_ns, found.st_ino)

    @property
    def mtime_is_stable(self) -> bool:
        """Whether the time stamp is old enough to tell a later change."""
        return time.time() - self.mtime_ns / 1e9 > SETTLED


class FileHashCache:
    """Lists of images by archive and folder, each with the stamps that the files had when they were read.

    Args:
        state_dir: private folder of this user, in which `raw/` is kept; None remembers nothing.
    """

    def __init__(self, state_dir: Path | None) -> None:
        self._folder = None if state_dir is None else private_folder(state_dir / "raw")

    def archive(self, path: Path) -> tuple[pd.DataFrame, dict] | None:
        """Images and hash of an archive, if it has not changed since they were kept."""
        table = self._read(path)
        if table is None:
            return None
        facts = json.loads(table.schema.metadata[b"facts"])
        # The file may have been hashed only: as one that is no archive.
        if facts.pop("listing", None) != LISTING or facts.pop("stamp") != list(FileStat.of(path)):
            return None
        return table.replace_schema_metadata().to_pandas(), facts

    def keep_archive(self, path: Path, stamp: FileStat, images: pd.DataFrame, facts: dict) -> None:
        """Keep what was read of an archive.

        Args:
            path: the archive.
            stamp: as it was before it was read.
            images: its members.
            facts: its size and hash.
        """
        if stamp.mtime_is_stable and stamp == FileStat.of(path):
            kept = facts | {"stamp": stamp, "listing": LISTING}
            self._write(path, pa.Table.from_pandas(images, preserve_index=False), kept)

    def sha256(self, path: Path) -> str:
        """SHA-256 of a file that is no image; read only if it has changed since the last time."""
        table = self._read(path)
        facts = {} if table is None else json.loads(table.schema.metadata[b"facts"])
        stamp = FileStat.of(path)
        if facts.get("stamp") == list(stamp) and "sha256" in facts:
            return facts["sha256"]
        digest = file_sha256(path)
        if stamp.mtime_is_stable and stamp == FileStat.of(path):
            self._write(path, pa.table({}), {"sha256": digest, "stamp": stamp})
        return digest

    def images(self, root: Path) -> dict[tuple[str, FileStat], str]:
        """Hashes of the single images below a data folder, by path relative to it and stamp."""
        table = self._read(root)
        if table is None:
            return {}
        columns = (table[name].to_pylist() for name in ("path", "hash", *FileStat._fields))
        return {(path, FileStat(*stamp)): digest for path, digest, *stamp in zip(*columns, strict=True)}

    def keep_images(
        self, root: Path, paths: Sequence[str], stamps: Sequence[FileStat], hashes: Sequence[str]
    ) -> None:
        """Keep what was read of single images; what is known of others stays."""
        listed = set(paths)
        rows = [
            (path, digest, *stamp)
            for path, stamp, digest in zip(paths, stamps, hashes, strict=True)
            if stamp.mtime_is_stable
        ]
        rows += [
            (path, digest, *stamp)
            for (path, stamp), digest in self.images(root).items()
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
            return None  # it is only a memory: what cannot be read is read from the raw files again

    def _write(self, path: Path, table: pa.Table, facts: dict) -> None:
        file = self._file(path)
        if file is not None:
            with private_file(file) as draft:
                pq.write_table(table.replace_schema_metadata({"facts": json.dumps(facts)}), draft)
