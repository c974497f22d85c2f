"""Child processes that never outlive their parent."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent ends, even by `kill -9` (Linux; elsewhere nothing)."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL)


def end_group(process: subprocess.Popen, patience: float = 5.0) -> None:
    """End a process started with `start_new_session=True` and everything it started: ask first, then kill.

    Args:
        process: leader of the group.
        patience: seconds between asking and killing.
    """
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(patience)
    with contextlib.suppress(ProcessLookupError):  # the leader may be gone while its children linger
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
