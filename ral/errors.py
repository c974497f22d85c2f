"""Errors with a message for the user: the pipeline's own, and failures of the machine."""

import errno
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

# Category of a failure, as in runs/<id>/failure.json.
Kind = Literal["input", "memory", "not_finite", "lost_process", "queue", "interrupted", "disk", "bug"]


# Credentials in a URL (`https://user:token@host/`); a password may contain an unescaped slash.
_ADDRESS = re.compile(
    r"(\b[a-z][a-z0-9+.-]{0,30}://)((?:[^\s/?#]*|[^\s/?#:@]*:(?!\d*(?:[/?#'\"\s]|$))\S*))@", re.IGNORECASE
)

# Credentials in a URL's query string (`?private_token=…`, Azure's `&sig=…`).
_QUERY = re.compile(r"([?&][\w.-]*(?:token|secret|password|key|sig|signature)=)[^&#\s'\"]+", re.IGNORECASE)

# Terminal control characters (except newline and tab), and characters that change the text direction.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def plain(text: str) -> str:
    """Text that is safe to print and store: credentials removed from URLs, control characters escaped.

    Messages quote repository URLs, which may contain a token, and table cells, which may contain anything.
    """
    text = _QUERY.sub(r"\1***", _ADDRESS.sub(_without_secret, text))
    return _CONTROL.sub(lambda match: ascii(match[0])[1:-1], text)


def _without_secret(match: re.Match[str]) -> str:
    scheme, user = match.groups()
    # The user of `ssh://git@host` is not secret, and the URL would not work without it.
    return match[0] if scheme.lower().endswith("ssh://") and ":" not in user else scheme


class UserError(Exception):
    """An error that the user can fix: bad input, a bad parameter, an unwritable path.

    The message says what is wrong, where (file, row, key) and what to do; it is sanitised by `plain`.
    A command prints it without a traceback and exits with 1 (`exit_with_message`). Any other exception is a bug and
    keeps its traceback.

    Args:
        message: text for the user.
        kind: machine-readable category.
        retry: whether rerunning the same command may succeed (a lost machine, a full queue).
    """

    def __init__(self, message: str, kind: Kind = "input", retry: bool = False) -> None:
        super().__init__(plain(message))
        self.kind, self.retry = kind, retry


# What to do about failures of the machine, by errno.
REMEDIES = {
    errno.ENOENT: "Run the steps before this one (dvc repro), or correct the path.",
    errno.ENOSPC: "Free some space there, or move the project to a larger disk, and rerun the same command.",
    errno.EDQUOT: "The disk quota is exceeded: free some space and rerun the same command.",
    errno.EFBIG: "The file exceeds a limit of the file system or of ulimit -f: raise it and rerun the same command.",
    errno.EACCES: "Grant this user access, or choose another folder.",
    errno.EPERM: "Grant this user access, or choose another folder.",
    errno.EROFS: "That file system is read-only: choose another folder.",
    errno.EEXIST: "A file is in the place of a folder: move it away.",
    errno.ENOTDIR: "A file is in the place of a folder: move it away.",
    errno.ENAMETOOLONG: "Give it a shorter name, or move it to a folder with a shorter path.",
    errno.ELOOP: "The path has a loop of symbolic links: replace them.",
    errno.EIO: "The disk or network storage is failing: check it and rerun the same command.",
    errno.ESTALE: "The network file system lost the file: remount it and rerun the same command.",
    errno.EISDIR: "A folder is in the place of a file: move it away.",
}

# Disk failures: retrying does not help until somebody fixes the disk.
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE)


def for_user(error: UserError | OSError) -> str:
    """The message of an error that the user can fix.

    Raises:
        OSError: `error` itself, if it has no remedy: then it is a bug and keeps its traceback.
    """
    if isinstance(error, UserError):
        return str(error)
    if error.errno not in REMEDIES:
        raise error
    return explain_os_error(error)


@contextmanager
def exit_with_message() -> Iterator[None]:
    """End the process at an error that the user can fix, with one line and exit code 1."""
    try:
        yield
    except (UserError, OSError) as error:
        sys.exit(f"error: {for_user(error)}")


def explain_os_error(error: OSError) -> str:
    """The message for an OSError with an errno in `REMEDIES`: path, cause and remedy."""
    prefix = f"{error.filename}: " if error.filename else ""
    return plain(f"{prefix}{os.strerror(error.errno or 0)}. {REMEDIES[error.errno or 0]}")
