"""Crash-safe changes in state_dir: atomic symlinks, and git repositories whose writer was killed."""

import os
from pathlib import Path

from ral.files import flush


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
