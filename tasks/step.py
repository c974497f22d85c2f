"""The edge of every step: its command line, and errors as one clear message with exit code 1."""

import argparse
import errno
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from ral import runs
from ral.errors import UserError
from ral.processes import die_with_parent


def parse(description: str, paths: dict[str, tuple[str, str]]) -> argparse.Namespace:
    """Read a step's command line.

    Args:
        description: what the step does; the module's docstring.
        paths: option name -> (default path, what it is); the defaults are those of dvc.yaml.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="parameters (params.yaml)")
    for name, (default, what) in paths.items():
        parser.add_argument(f"--{name}", type=Path, default=Path(default), help=f"{what} ({default})")
    return parser.parse_args()


def main(name: str, step: Callable[[], None]) -> None:
    """Run a step and record it; what the user can mend ends as `error: ...` and exit code 1, a bug keeps its trace."""
    if "DVC_STAGE" in os.environ:  # DVC, when it is killed, leaves the stages it started
        die_with_parent()
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(143)
    )  # so that drafts are removed and the record is closed
    try:
        with runs.recorded(name):
            step()
    except UserError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        if error.errno not in _REMEDIES:
            raise
        where = f"{error.filename}: " if error.filename else ""
        sys.exit(f"error: {where}{os.strerror(error.errno)}. {_REMEDIES[error.errno]}")
    except KeyboardInterrupt:
        sys.exit(130)


# Failures of the machine rather than of the input, and what helps.
_REMEDIES = {
    errno.ENOENT: "Run the steps before this one (dvc repro), or correct the path.",
    errno.ENOSPC: "Free some space there, or move the project to a larger disk, and run the same command again.",
    errno.EDQUOT: "Your disk quota is used up: free some space, and run the same command again.",
    errno.EFBIG: "The file system or a limit (ulimit -f) allows no larger file: raise it, and run again.",
    errno.EACCES: "Give this user the right to it, or choose another folder.",
    errno.EPERM: "Give this user the right to it, or choose another folder.",
    errno.EROFS: "That file system is read-only: choose another folder.",
    errno.EEXIST: "A file stands where a folder is needed: move it away.",
    errno.ENOTDIR: "A file stands where a folder is needed: move it away.",
    errno.EISDIR: "A folder stands where a file is needed: move it away.",
}
