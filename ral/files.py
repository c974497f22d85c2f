"""Files that appear whole or not at all, JSON with stable bytes, content hashes."""

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
from typing import Any

from ral.errors import UserError


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it becomes `path` only if the block succeeds.

    What writers of `path` that were killed have left is removed first.

    Raises:
        OSError: the folder cannot be made or written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _replacing(path, 0o666) as draft:  # the umask says who may read it
        yield draft


@contextmanager
def _replacing(path: Path, mode: int) -> Iterator[Path]:
    """`atomic_write` and `private_file`: the lock on the temporary file, which the kernel drops, says that its writer lives."""
    remove_stale_drafts(path.parent, path.name)
    while True:
        draft = path.parent / f".{path.name}.{secrets.token_hex(4)}"
        with open(draft, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as stream:
            with suppress(OSError):  # a file system without locks: there nobody can take it for stale either
                fcntl.flock(stream, fcntl.LOCK_EX)
            if not draft.exists():  # removed as stale between our two calls
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
        folder: where to look.
        name: of the file that was to be written; None for all files of the folder.
    """
    pattern = re.compile(rf"\.{'.+' if name is None else re.escape(name)}\.[0-9a-f]{{8}}")
    for entry in filter(pattern.fullmatch, os.listdir(folder)):
        # One that is being written is locked; one that is another user's, or gone by now, is nothing to fail for.
        with suppress(OSError), (folder / entry).open("r+b") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            (folder / entry).unlink()


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; what is in it appears in `path` only if the block succeeds.

    Entries of the same name in an older folder are replaced; others are not this step's and stay.

    Raises:
        UserError: another process is writing the same folder.
        OSError: the folder cannot be made or written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.parent / f".{path.name}.draft"
    with _only_writer(path):
        shutil.rmtree(draft, ignore_errors=True)  # left by a process that was killed: nobody else writes now
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
def _only_writer(path: Path) -> Iterator[None]:
    """Hold the lock of a folder that is being written; the kernel lets go of it when this process ends, however it ends.

    (A process id in a name tells nothing: in a container it is the same one again.)

    Raises:
        UserError: another process holds it.
    """
    lock = path.parent / f".{path.name}.lock"
    while True:
        with lock.open("a") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"Another run is writing {path} at this moment. Wait for its end, or work in another copy of the project.",
                    retry=True,
                ) from None
            try:
                current = os.path.samestat(os.fstat(stream.fileno()), lock.stat())
            except FileNotFoundError:
                current = False
            if not current:  # its holder removed it between our two calls
                continue
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
            return


def follow_umask(path: Path) -> None:
    """Give a file that a library made private the mode that a file made by `open` has."""
    umask = os.umask(0o077)
    os.umask(umask)
    path.chmod(0o666 & ~umask)


def private_folder(path: Path) -> Path:
    """Make a folder that only this user can enter, and those above it that are missing. One that exists keeps its mode.

    Raises:
        UserError: others may write to it: what they put there would be trusted.
    """
    for folder in reversed([path, *path.parents]):
        if not folder.is_dir():
            folder.mkdir(mode=0o700, exist_ok=True)
    refuse_shared(path)
    return path


def refuse_shared(path: Path) -> None:
    """Refuse a folder of state to which others may write; one that is not there is fine.

    Raises:
        UserError: they may.
    """
    if path.is_dir() and (mode := path.stat().st_mode) & 0o022:
        raise UserError(
            f"{path} may be written to by others (mode {mode & 0o7777:04o}), and what is in it decides which model and data "
            f"are used. If nobody else has written there: chmod go-w '{path}'. Else set RAL_STATE_DIR (or state_dir in "
            "ral.toml) to a folder of your own."
        )


@contextmanager
def private_file(path: Path) -> Iterator[Path]:
    """As `atomic_write`, in a folder that is there; the file is readable by this user only."""
    with _replacing(path, 0o600) as draft:
        yield draft


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON whose bytes depend on nothing but the value (NaN is refused: write null)."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    with atomic_write(path) as draft:
        draft.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file that a step of this pipeline wrote."""
    return json.loads(path.read_text(encoding="utf-8"))


def sha256(path: Path) -> str:
    """SHA-256 of a file's content, as hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
