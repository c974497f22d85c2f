"""Starts the processes of a training run on this machine and watches them: one per GPU, or one on the CPU."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from ral.errors import UserError
from ral.processes import die_with_parent


def launch_local(spec: Path, error_file: Path, processes: int) -> None:
    """Run `python -m ral.training` in `processes` processes until all have ended.

    Args:
        spec: the run's specification (see `ral.training.__main__`).
        error_file: where the first rank to fail writes what the user can mend.
        processes: world size; each gets its own GPU where there are any.

    Raises:
        UserError: a process failed; the others were ended.
    """
    port = free_port()
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "ral.training", str(spec)],
            env=os.environ | rendezvous(rank, processes, port),
            preexec_fn=die_with_parent,
        )
        for rank in range(processes)
    ]
    try:
        failed = _watch(children)
    finally:
        for child in children:
            child.terminate()
        for child in children:
            child.wait()
    if failed is not None:
        if error_file.exists():
            raise UserError(error_file.read_text(encoding="utf-8"))
        code = children[failed].returncode
        how = f"exit code {code}" if code >= 0 else f"signal {-code}"
        raise UserError(
            f"Training process {failed} of {processes} ended with {how}; its own lines stand above."
        )


def rendezvous(rank: int, world: int, port: int) -> dict[str, str]:
    """The variables by which the processes of one machine find each other."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def free_port() -> int:
    """A TCP port that nobody listens on at the moment; two runs at once must not share one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _watch(children: list[subprocess.Popen]) -> int | None:
    """Wait until all have ended well (None) or one has failed (its rank)."""
    while True:
        codes = [child.poll() for child in children]
        for rank, code in enumerate(codes):
            if code not in (None, 0):
                return rank
        if all(code == 0 for code in codes):
            return None
        time.sleep(0.1)
