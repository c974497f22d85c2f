"""The process group: how a rank joins it, and what a rank knows of it."""

import logging
import os
import socket
import sys
import warnings
from typing import NamedTuple

import torch

from ral.errors import UserError
from ral.training.device import assign_device

# MASTER_ADDR when all ranks run on one machine (`ral.launch.local`).
LOOPBACK = "127.0.0.1"


class DistributedContext(NamedTuple):
    """Rank, world size and device of this process."""

    rank: int
    world_size: int
    device: torch.device


def init_process() -> DistributedContext:
    """Join the process group; the launcher has set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT.

    The device is that of `assign_device`.

    Raises:
        UserError: MASTER_PORT is in use.
    """
    gpu = torch.cuda.is_available()
    # Otherwise DeepSpeed probes for accelerators and prints warnings.
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if gpu else "cpu")
    import deepspeed

    if not gpu:
        # Only inference uses this operator, and building it needs a compiler and half a minute. On a GPU nothing
        # builds it, and reading this table would probe the compilers of all other operators.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # DeepSpeed calls deprecated names of torch collectives at every step.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    device = assign_device(torch.cuda.device_count() if gpu else 0)
    if gpu:
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    if os.environ["MASTER_ADDR"] == LOOPBACK:
        _join_on_loopback(backend, device)
    deepspeed.init_distributed(dist_backend=backend, verbose=False)
    return DistributedContext(torch.distributed.get_rank(), torch.distributed.get_world_size(), device)


def _join_on_loopback(backend: str, device: torch.device) -> None:
    """Create the process group of a single machine on loopback sockets, unreachable from other machines.

    By default torch's store listens on every interface, whatever MASTER_ADDR is, and has no authentication.

    Raises:
        UserError: MASTER_PORT is in use.
    """
    from deepspeed.constants import default_pg_timeout

    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    port = int(os.environ["MASTER_PORT"])
    interface = "lo0" if sys.platform == "darwin" else "lo"
    os.environ |= {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": interface}
    listening = None
    if rank == 0:
        try:
            listening = socket.create_server((LOOPBACK, port)).detach()
        except OSError as error:
            raise UserError(
                f"Training cannot use port {port} of this machine for its rendezvous: {error.strerror}. Rerun the same "
                "command, or set training.port to a free port.",
                retry=True,
            ) from None
    store = torch.distributed.TCPStore(
        LOOPBACK, port, world, rank == 0, timeout=default_pg_timeout, master_listen_fd=listening
    )
    torch.distributed.init_process_group(
        backend, store=store, rank=rank, world_size=world, timeout=default_pg_timeout,
        device_id=device if device.type == "cuda" and world > 1 else None,  # as DeepSpeed does it
    )  # fmt: skip


def limit_waiting() -> None:
    """Let collectives of every process group time out as those of the default group: DEEPSPEED_TIMEOUT, in minutes.

    DeepSpeed creates groups of its own, which have torch's timeouts: 30 minutes with gloo.
    """
    from deepspeed.constants import default_pg_timeout
    from torch.distributed import distributed_c10d

    for group in list(distributed_c10d._world.pg_map):
        distributed_c10d._set_pg_timeout(default_pg_timeout, group)
