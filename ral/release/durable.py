"""Crash-safe writing in state_dir: file locks, fsync and atomic symlinks."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ral.files import private_folder


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file; other processes wait. The kernel releases it when the process ends.

    Args:
        path: the lock file, created if needed. It is never removed: removal would let two processes hold the lock.
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


def atomic_symlink(link: Path, target: str) -> None:
    """Make `link` a symlink to `target`, atomically: it always points to the old or to the new target."""
    draft = link.with_name(f".{link.name}.draft")
    draft.unlink(missing_ok=True)
    draft.symlink_to(target)
    os.replace(draft, link)
    flush(link.parent)


def clear_git_locks(git_dir: Path) -> None:
    """Remove stale lock files that a killed git process left behind; git never removes them itself.

    The caller holds the project's lock that all writers to the repository take, so no lock file found here is
    in use. Do not run git by hand in this repository at the same time: that process would lose its lock.

    Args:
        git_dir: a bare repository, or a .git folder.
    """
    # git forbids references named *.lock, so all of these are lock files: HEAD.lock, index.lock,
    # packed-refs.lock, refs/heads/x.lock.
    for lock in [*git_dir.glob("*.lock"), *(git_dir / "refs").rglob("*.lock")]:
        lock.unlink(missing_ok=True)
