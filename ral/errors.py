"""Errors whose text is meant for the person who runs the pipeline: our own, and failures of the machine."""

import errno
import os
import re
from typing import Literal

# What failed, as runs/<id>/failure.json names it.
Kind = Literal["input", "memory", "not_finite", "lost_process", "queue", "interrupted", "disk", "bug"]


# User and password in an address (`https://user:token@host/`); a password may hold a slash that should have been quoted.
_ADDRESS = re.compile(
    r"(\b[a-z][a-z0-9+.-]{0,30}://)((?:[^\s/?#]*|[^\s/?#:@]*:(?!\d*(?:[/?#'\"\s]|$))\S*))@", re.IGNORECASE
)

# The same as a part of an address's query (`?private_token=…`, Azure's `&sig=…`).
_QUERY = re.compile(r"([?&][\w.-]*(?:token|secret|password|key|sig|signature)=)[^&#\s'\"]+", re.IGNORECASE)

# What a terminal obeys (but for new lines and tabs), and what turns the direction of writing.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def plain(text: str) -> str:
    """Text as it may be shown and kept: addresses without passwords, control characters as escapes.

    Messages quote addresses of repositories, which may hold a token, and cells of tables, which may hold anything.
    """
    text = _QUERY.sub(r"\1***", _ADDRESS.sub(_without_secret, text))
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


def _without_secret(found: re.Match) -> str:
    scheme, user = found.groups()
    # The user of `ssh://git@host` is no secret, and without it the address is another one.
    return found[0] if scheme.lower().endswith("ssh://") and ":" not in user else scheme


class UserError(Exception):
    """Something the user can mend: bad input, a bad parameter, an unwritable place.

    The message says what is wrong, where (file, row, key) and what to do; it is made `plain`. The edge of a step
    (`tasks.step`) prints it without a traceback and exits with 1; anything else is a bug and keeps its trace.

    Args:
        message: for people.
        kind: for programs.
        retry: whether the same command may succeed later (a lost machine, a full queue).
    """

    def __init__(self, message: str, kind: Kind = "input", retry: bool = False) -> None:
        super().__init__(plain(message))
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
    return plain(f"{where}{os.strerror(error.errno or 0)}. {REMEDIES[error.errno or 0]}")
