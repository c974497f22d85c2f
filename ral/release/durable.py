"""What must survive a crash in state_dir: one writer at a time, and files that are on the disk before they have a name."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ral.files import private_folder


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file beside what it guards; others wait. It ends with the process, however that ends.

    Args:
        path: the lock's own file, made if needed; it stays, since removing it would let two in at once.
    """
    private_folder(path.parent)
    with path.open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def flush(path: Path) -> None:
    """Have the disk keep a file's content, or the names in a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def flush_tree(folder: Path) -> None:
    """Have the disk keep all files below a folder, and their names."""
    for path in sorted(folder.rglob("*")):
        flush(path)
    flush(folder)


def point(link: Path, target: str) -> None:
    """Make `link` a symlink to `target`, in one step: at every moment it leads to the old or to the new one."""
    draft = link.with_name(f".{link.name}.draft")
    draft.unlink(missing_ok=True)
    draft.symlink_to(target)
    os.replace(draft, link)
    flush(link.parent)


def clear_git_locks(git_dir: Path) -> None:
    """Remove what a git that was killed, or lost its power, left locked: git itself waits for ever for somebody to do so.

    The caller holds a lock of this project's own that all its writers to the repository take, so that no lock that is found
    is in use. A git that somebody else runs there at this moment loses its lock; nobody is to work there by hand.

    Args:
        git_dir: of a repository: a bare one, or .git.
    """
    # No reference may be named *.lock, so all of these are locks: HEAD.lock, index.lock, packed-refs.lock, refs/heads/x.lock.
    for lock in [*git_dir.glob("*.lock"), *(git_dir / "refs").rglob("*.lock")]:
        lock.unlink(missing_ok=True)
