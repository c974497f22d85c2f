"""The watcher: starts the ranks of one machine and monitors them. Launchers start it on each machine.

    python -m ral.launch.ranks slurm 8.0 SPEC.json python -m ral.training

starts `python -m ral.training SPEC.json`. The first argument names the scheduler whose variables give the
rank (`RANKS`). The exit code is 0, or 1 after a failure anywhere in the job; after an interruption 143 on the
machine of rank 0, and 0 on others. The reason is in the file named by SPEC.json's key `failure`.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from ral.errors import UserError
from ral.files import read_json
from ral.launch.base import AFTER_FAILURE, read_failure, write_failure
from ral.processes import (
    LOST_PEER,
    die_with_parent,
    ignore_termination_signals,
    kill_group,
    on_termination_signal,
)

TERMINATED = 128 + signal.SIGTERM


def rendezvous_env(rank: int, local_rank: int, world: int, address: str, port: int | str) -> dict[str, str]:
    """Environment variables of a rank, for torch.distributed's rendezvous."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(local_rank),
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
    }


def ranks_from_slurm(env: Mapping[str, str]) -> list[dict[str, str]]:
    """SLURM starts one task per rank; MASTER_ADDR and MASTER_PORT come from the batch script."""
    return [
        rendezvous_env(
            int(env["SLURM_PROCID"]),
            int(env["SLURM_LOCALID"]),
            int(env["SLURM_NTASKS"]),
            env["MASTER_ADDR"],
            env["MASTER_PORT"],
        )
    ]


def ranks_from_deepspeed(env: Mapping[str, str]) -> list[dict[str, str]]:
    """DeepSpeed's launcher starts one process per slot and sets all variables."""
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    return [{name: env[name] for name in names}]


def ranks_from_kubeflow(env: Mapping[str, str]) -> list[dict[str, str]]:
    """Kubeflow starts one pod per machine; RAL_NODES and RAL_PER_NODE come from the manifest."""
    nodes, per_node = int(env["RAL_NODES"]), int(env["RAL_PER_NODE"])
    node = int(env["PET_NODE_RANK"] if "PET_NODE_RANK" in env else env["RANK"])
    address = env["PET_MASTER_ADDR"] if "PET_MASTER_ADDR" in env else env["MASTER_ADDR"]
    port = env["PET_MASTER_PORT"] if "PET_MASTER_PORT" in env else env["MASTER_PORT"]
    return [
        rendezvous_env(node * per_node + local_rank, local_rank, nodes * per_node, address, port)
        for local_rank in range(per_node)
    ]


RANKS = {"slurm": ranks_from_slurm, "deepspeed": ranks_from_deepspeed, "kubeflow": ranks_from_kubeflow}


def run_ranks(
    ranks: Sequence[Mapping[str, str]], command: Sequence[str], spec: Path, failure: Path, grace: float
) -> None:
    """Run ranks on this machine until all have ended.

    Args:
        ranks: environment variables of each rank, with at least RANK and WORLD_SIZE.
        command: command of a rank, before the path of `spec`.
        spec: the run's specification.
        failure: the job's failure file; when it appears, all ranks are terminated.
        grace: seconds between SIGTERM and SIGKILL for the ranks, if this process receives a termination
            signal, or the failure file says that training was interrupted.

    Raises:
        UserError: a rank of the job failed.
        KeyboardInterrupt, SystemExit: this process received a termination signal; its ranks have ended.
    """
    if (
        reported := read_failure(failure)
    ) is not None:  # the scheduler restarted a pod or task, or started it late
        raise reported
    children: list[subprocess.Popen[bytes]] = []
    timeout = AFTER_FAILURE
    try:
        for rank in ranks:
            children.append(
                subprocess.Popen(
                    [*command, str(spec)],
                    env=os.environ | rank,
                    preexec_fn=die_with_parent,
                    start_new_session=True,  # Ctrl-C goes to the launcher, which then lets them save
                )
            )
        if _all_succeeded(children, failure):
            timeout = 0.0
            return
        reported = read_failure(failure)
        if reported is not None and reported.kind == "interrupted":
            timeout = grace  # by the launcher, on this or another machine: the ranks save a checkpoint
        else:
            _report_cause(children, ranks, failure)
    except (KeyboardInterrupt, SystemExit):
        timeout = grace
        raise
    finally:
        _terminate(children, timeout)
    raise read_failure(failure) or UserError(f"Training failed, and {failure} cannot be read.", "bug")


def _all_succeeded(children: Sequence[subprocess.Popen[bytes]], failure: Path) -> bool:
    """Wait until all ranks exited with 0 (True), or until one failed or the failure file appeared (False)."""
    last_check = time.monotonic()
    while True:
        codes = [child.poll() for child in children]
        if any(code not in (None, 0) for code in codes):
            return False
        if all(code == 0 for code in codes):
            return True
        if time.monotonic() - last_check > 0.5:  # poll rarely: it may be on a network file system
            last_check = time.monotonic()
            if failure.exists():
                return False
        time.sleep(0.1)


def _report_cause(
    children: Sequence[subprocess.Popen[bytes]], ranks: Sequence[Mapping[str, str]], failure: Path
) -> None:
    """Report the failure of a rank that died without reporting it.

    A killed rank makes collectives fail on the others, and one of them may have reported that first. The kill
    is the root cause, so it replaces such a report.
    """
    time.sleep(0.3)
    codes = [child.poll() for child in children]
    dead = [(rank, code) for rank, code in zip(ranks, codes, strict=True) if code]
    dead.sort(
        key=lambda item: (item[1] >= 0, item[1] == LOST_PEER)
    )  # killed ranks first, those that lost a peer last
    if not dead:
        return
    rank, code = dead[0]
    name = f"Training process {rank['RANK']} of {rank['WORLD_SIZE']} on {socket.gethostname()}"
    if code in (-signal.SIGTERM, -signal.SIGHUP, TERMINATED):
        write_failure(failure, f"{name} was terminated.", "interrupted", True)
    elif code < 0:
        reported = read_failure(failure)
        hint = " The machine may have run out of memory." if code == -signal.SIGKILL else ""
        message = f"{name} was killed by signal {-code} ({signal.Signals(-code).name}).{hint}"
        replace = reported is not None and reported.kind == "bug"
        write_failure(failure, message, "lost_process", True, replace=replace)
    elif code == LOST_PEER:
        message = f"{name} lost its connection to another one. Check that machine, the network and the output above."
        write_failure(failure, message, "lost_process", True)
    else:
        write_failure(
            failure,
            f"{name} exited with code {code}; see its output above.",
            "lost_process",
            True,
        )


def _terminate(children: Sequence[subprocess.Popen[bytes]], timeout: float) -> None:
    """Send SIGTERM to running ranks, and SIGKILL after `timeout` seconds or a second Ctrl-C."""
    try:
        for child in children:
            if child.poll() is None:
                child.terminate()
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline and any(child.poll() is None for child in children):
            time.sleep(0.05)
    finally:
        for child in children:
            kill_group(child)


def main() -> None:
    """Run this machine's ranks, as given by the scheduler's variables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scheduler", choices=RANKS, help="whose variables give the rank")
    parser.add_argument("grace", type=float, help="seconds for a checkpoint after a termination signal")
    parser.add_argument("spec", type=Path, help="specification of the training")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="of a rank; the specification is added")
    options = parser.parse_args()
    on_termination_signal(_exit_on_signal)
    failure = Path(read_json(options.spec)["failure"])
    ranks = RANKS[options.scheduler](os.environ)
    # Schedulers kill the other tasks when one fails (srun at once). Rank 0 may still be writing the checkpoint, so
    # after an interruption only its watcher fails.
    interrupted = TERMINATED if any(rank["RANK"] == "0" for rank in ranks) else 0
    try:
        run_ranks(ranks, options.command, options.spec, failure, options.grace)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(interrupted if error.kind == "interrupted" else 1)
    except (KeyboardInterrupt, SystemExit):
        host = socket.gethostname()
        write_failure(
            failure,
            f"Training was interrupted on {host}. Rerun the same command to resume.",
            "interrupted",
            True,
        )
        sys.exit(interrupted)


def _exit_on_signal(number: int, frame: object) -> None:
    ignore_termination_signals()  # a scheduler may send several
    sys.exit(TERMINATED)


if __name__ == "__main__":
    main()
