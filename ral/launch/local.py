"""All ranks on this machine: one per GPU (as many as divide the batch), or a single one on the CPU.

RAL_TRAINING_PROCESSES=2 python -m tasks.train
"""

import logging
import socket

from ral.config.environment import TrainingTarget
from ral.config.train import TrainConfig
from ral.errors import UserError
from ral.launch.base import Job, shell_line
from ral.launch.gpus import count_gpus
from ral.launch.ranks import rendezvous_env, run_ranks

logger = logging.getLogger(__name__)


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
    run_ranks(_ranks(job), job.command, job.spec, job.failure, job.grace)


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


def choose_processes(training: TrainingTarget, train: TrainConfig) -> TrainingTarget:
    """Set the number of processes of the local launcher, if it is not set: one per GPU, or one on the CPU.

    If the batch cannot be split evenly over all GPUs, the largest number that divides it is used.

    Args:
        training: launcher and its settings; returned unchanged for other launchers.
        train: the batch size and the micro-batch size.

    Raises:
        UserError: more processes are set than there are GPUs.
    """
    if training.launcher != "local":
        return training
    gpus = count_gpus()
    if training.processes is not None:
        if 0 < gpus < training.processes:
            raise UserError(
                f"training.processes is {training.processes}, but this machine has {gpus} usable GPU(s), and each "
                "process needs its own. Lower it, or set CUDA_VISIBLE_DEVICES= (empty) to train on the CPU."
            )
        return training
    processes = largest_divisor(train.batch_size, train.micro_batch, gpus)
    if processes < gpus:
        unit = gpus * (train.micro_batch or 1)
        nearest = max(1, round(train.batch_size / unit)) * unit
        logger.warning(
            "Training uses %d of %d GPUs: train.batch_size (%d) cannot be split evenly over more%s. To use all, set a "
            "multiple of %d, such as %d.",
            processes, gpus, train.batch_size,
            f" with train.micro_batch {train.micro_batch}" if train.micro_batch else "", unit, nearest,
        )  # fmt: skip
    return training.model_copy(update={"processes": processes})


def largest_divisor(batch: int, micro: int | None, gpus: int) -> int:
    """The largest number of processes up to `gpus` (at least 1) over which `batch` can be split evenly, into
    micro-batches of `micro` images if it is set.
    """
    unit = micro or 1
    return next((n for n in range(gpus, 1, -1) if batch % (n * unit) == 0), 1)


def _ranks(job: Job) -> list[dict[str, str]]:
    world = job.target.processes or max(1, count_gpus())
    return [rendezvous_env(rank, rank, world, "127.0.0.1", job.port) for rank in range(world)]
