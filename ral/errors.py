"""Errors whose text is meant for the person who runs the pipeline: our own, and failures of the machine."""

import errno
import os
from typing import Literal

# What failed, as runs/<id>/failure.json names it.
Kind = Literal["input", "memory", "not_finite", "lost_process", "queue", "interrupted", "disk", "bug"]


class UserError(Exception):
    """Something the user can mend: bad input, a bad parameter, an unwritable place.

    The message says what is wrong, where (file, row, key) and what to do. The edge of a step
    (`tasks.step`) prints it without a traceback and exits with 1; anything else is a bug and keeps its trace.

    Args:
        message: for people.
        kind: for programs.
        retry: whether the same command may succeed later (a lost machine, a full queue).
    """

    def __init__(self, message: str, kind: Kind = "input", retry: bool = False) -> None:
        super().__init__(message)
        self.kind, self.retry = kind, retry


# Failures of the machine rather than of the input, and what helps.
REMEDIES = {
    errno.ENOENT: "Run the steps before this one (dvc repro), or correct the path.",
    errno.ENOSPC: "Free some space there, or move the project to a larger disk, and run the same command again.",
    errno.EDQUOT: "Your disk quota is used up: free some space, and run the same command again.",
    errno.EFBIG: "The file system or a limit (ulimit -f) allows no larger file: raise it, and run again.",
    errno.EACCES: "Give this user the right to it, or choose another folder.",
    errno.EPERM: "Give this user the right to it, or choose another folder.",
    errno.EROFS: "That file system is read-only: choose another folder.",
    errno.EEXIST: "A file stands where a folder is needed: move it away.",
    errno.ENOTDIR: "A file stands where a folder is needed: move it away.",
    errno.ENAMETOOLONG: "Give it a shorter name, or move it to a folder with a shorter path.",
    errno.ELOOP: "Links point to each other there: replace them.",
    errno.EIO: "The disk or the network behind it fails: check it, and run the same command again.",
    errno.ESTALE: "The network file system lost the file: mount it again, and run the same command again.",
    errno.EISDIR: "A folder stands where a file is needed: move it away.",
}

# Those of the disk: trying again does not help before a person has looked.
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE)


def explain_os_error(error: OSError) -> str:
    """A failure of the machine, one of `REMEDIES`, for people: where, what, and what helps."""
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{os.strerror(error.errno or 0)}. {REMEDIES[error.errno or 0]}"
