"""Atomic writes of files and directories, locks, fsync, deterministic JSON, content hashes."""

import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from ral.errors import UserError


def try_lock(stream: IO[Any]) -> bool:
    """Lock an open file exclusively; False if another process holds the lock.

    The kernel releases the lock when the file is closed or the process ends, even by `kill -9`. A process id in the
    file would not do: containers reuse the same ids.
    """
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file during the block; other processes wait.

    Args:
        path: the lock file in a private folder, created if needed. It is never removed: removal would let two processes
            hold the lock.
    """
    private_folder(path.parent)
    with path.open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def flush(path: Path) -> None:
    """fsync a file or a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def flush_tree(folder: Path) -> None:
    """fsync a folder and everything below it."""
    for path in sorted(folder.rglob("*")):
        flush(path)
    flush(folder)


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Write a file atomically: yield a temporary path beside `path`, renamed to `path` if the block succeeds.

    Temporary files left over from killed writers of `path` are removed first.

    Raises:
        OSError: the folder cannot be created or written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _replacing(path, 0o666) as draft:  # permissions follow the umask
        yield draft


@contextmanager
def _replacing(path: Path, mode: int) -> Iterator[Path]:
    """Shared by `atomic_write` and `private_file`. A locked temporary file has a live writer; the kernel
    drops the lock.
    """
    remove_stale_drafts(path.parent, path.name)
    while True:
        draft = path.parent / f".{path.name}.{secrets.token_hex(4)}"
        with open(draft, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as stream:
            with suppress(OSError):  # no lock support: then it cannot be detected as stale either
                fcntl.flock(stream, fcntl.LOCK_EX)
            if not draft.exists():  # removed as stale between open and lock
                continue
            try:
                yield draft
                draft.replace(path)
            finally:
                draft.unlink(missing_ok=True)
            return


def remove_stale_drafts(folder: Path, name: str | None = None) -> None:
    """Remove temporary files of `atomic_write` and `private_file` whose writer was killed.

    Args:
        folder: folder to search.
        name: name of the file that was being written; None for any.
    """
    pattern = re.compile(rf"\.{'.+' if name is None else re.escape(name)}\.[0-9a-f]{{8}}")
    for entry in filter(pattern.fullmatch, os.listdir(folder)):
        # Files being written are locked; ignore files of other users and files that no longer exist.
        with suppress(OSError), (folder / entry).open("r+b") as stream:
            if try_lock(stream):
                (folder / entry).unlink()


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Write a directory atomically: yield a temporary one, whose entries move to `path` if the block
    succeeds.

    If `path` exists, entries of the same name are replaced one by one; others belong to other steps and stay.

    Raises:
        UserError: another process is writing the same directory.
        OSError: the directory cannot be created or written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.parent / f".{path.name}.draft"
    with _directory_lock(path):
        shutil.rmtree(draft, ignore_errors=True)  # left over from a killed process: this one holds the lock
        draft.mkdir()
        try:
            yield draft
            if not path.exists():
                draft.replace(path)
            else:
                for entry in sorted(draft.iterdir()):
                    target = path / entry.name
                    if target.is_dir():
                        shutil.rmtree(target)
                    entry.replace(target)
        finally:
            shutil.rmtree(draft, ignore_errors=True)


@contextmanager
def _directory_lock(path: Path) -> Iterator[None]:
    """Lock a directory for writing.

    Raises:
        UserError: another process holds the lock.
    """
    lock = path.parent / f".{path.name}.lock"
    while True:
        with lock.open("a") as stream:
            if not try_lock(stream):
                raise UserError(
                    f"Another run is writing {path}. Wait for it to finish, or work in another copy of the project.",
                    retry=True,
                )
            try:
                current = os.path.samestat(os.fstat(stream.fileno()), lock.stat())
            except FileNotFoundError:
                current = False
            if not current:  # removed by its holder between open and lock
                continue
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
            return


def follow_umask(path: Path) -> None:
    """Set the mode of a file, created as private by a library, to the default for the umask."""
    umask = os.umask(0o077)
    os.umask(umask)
    path.chmod(0o666 & ~umask)


def private_folder(path: Path) -> Path:
    """Create a folder, and its missing parents, with mode 0700. An existing folder keeps its mode.

    Raises:
        UserError: other users have write access, so its content cannot be trusted.
    """
    for folder in reversed([path, *path.parents]):
        if not folder.is_dir():
            folder.mkdir(mode=0o700, exist_ok=True)
    refuse_shared(path)
    return path


def refuse_shared(path: Path) -> None:
    """Refuse a state folder to which other users can write; a missing folder is fine.

    Raises:
        UserError: other users have write access.
    """
    if path.is_dir() and (mode := path.stat().st_mode) & 0o022:
        raise UserError(
            f"{path} is writable by others (mode {mode & 0o7777:04o}), and its content decides which model "
            "and data are "
            f"used. If nobody else has written there: chmod go-w '{path}'. Otherwise set RAL_STATE_DIR (or "
            "state_dir in "
            "ral.toml) to a folder of your own."
        )


@contextmanager
def private_file(path: Path) -> Iterator[Path]:
    """Like `atomic_write`, in an existing folder; only this user can read the file."""
    with _replacing(path, 0o600) as draft:
        yield draft


def write_json(path: Path, value: Any) -> None:
    """Write `value` atomically as deterministic JSON. NaN is refused: use null."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    with atomic_write(path) as draft:
        draft.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file written by a step of this pipeline."""
    return json.loads(path.read_text(encoding="utf-8"))


def sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
