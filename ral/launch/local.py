"""All ranks on this machine: one per GPU, or a single one on the CPU.

RAL_TRAINING_PROCESSES=2 python -m tasks.train
"""

import os
import socket
from pathlib import Path

from ral.errors import UserError
from ral.launch.base import Job, shell_line
from ral.launch.ranks import rendezvous_env, run_ranks


def plan(job: Job) -> dict[str, str]:
    """The command of each rank with its environment variables."""
    lines = [
        shell_line(["env", *(f"{name}={value}" for name, value in rank.items()), *job.command, str(job.spec)])
        for rank in _ranks(job)
    ]
    return {"launch.sh": "\n".join([*(f"{line} &" for line in lines), "wait", ""])}


def run(job: Job) -> None:
    """Start the ranks and wait; see `ral.launch.ranks.run_ranks`.

    Raises:
        UserError: the loopback interface is down, or a rank failed.
    """
    _check_loopback()
    run_ranks(_ranks(job), job.command, job.spec, job.failure, job.target.grace)


def _check_loopback() -> None:
    """Fail early if loopback is unreachable; otherwise training would time out after ten minutes.

    Raises:
        UserError: the loopback interface is down.
    """
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname(), timeout=10).close()
    except OSError as error:
        raise UserError(
            f"127.0.0.1 cannot be reached ({error.strerror or error}). Training processes need it for their "
            "rendezvous, even "
            "a single one: bring the loopback interface up (ip link set lo up). No other network is needed."
        ) from None


def gpus() -> int:
    """Number of GPUs visible to this process; torch is imported only if the machine has a GPU device file."""
    devices = [*Path("/dev").glob("nvidia[0-9]*"), *Path("/dev").glob("kfd"), *Path("/dev").glob("dxg")]
    if not devices or os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return 0
    import torch

    return torch.cuda.device_count()


def _ranks(job: Job) -> list[dict[str, str]]:
    world = job.target.processes or max(1, gpus())
    return [rendezvous_env(rank, rank, world, "127.0.0.1", job.port) for rank in range(world)]
