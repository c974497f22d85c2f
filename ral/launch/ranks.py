"""Starts the training processes of one machine and watches them; the launchers put it where processes run.

    python -m ral.launch.ranks slurm 8.0 SPEC.json python -m ral.training

starts `python -m ral.training SPEC.json`. The first word says whose variables tell which process this is (`RANKS`). It
ends with 0, with 1 after a failure anywhere in the job, or with 143 if it was asked to end; SPEC.json's key `failure`
names the file that tells why.
"""

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
from ral.processes import LOST_PEER, die_with_parent, ignore_requests_to_end, kill_group, on_request_to_end

ASKED_TO_END = 128 + signal.SIGTERM


def rendezvous_env(rank: int, local_rank: int, world: int, address: str, port: int | str) -> dict[str, str]:
    """The variables by which the processes find each other."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(local_rank),
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
    }


def ranks_from_slurm(given: Mapping[str, str]) -> list[dict[str, str]]:
    """SLURM starts one task per process; MASTER_ADDR and MASTER_PORT come from the batch script."""
    return [
        rendezvous_env(
            int(given["SLURM_PROCID"]),
            int(given["SLURM_LOCALID"]),
            int(given["SLURM_NTASKS"]),
            given["MASTER_ADDR"],
            given["MASTER_PORT"],
        )
    ]


def of_deepspeed(given: Mapping[str, str]) -> list[dict[str, str]]:
    """DeepSpeed's launcher starts one process per slot and sets all variables itself."""
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    return [{name: given[name] for name in names}]


def of_kubeflow(given: Mapping[str, str]) -> list[dict[str, str]]:
    """Kubeflow starts one pod per machine; RAL_NODES and RAL_PER_NODE come from our manifest."""
    nodes, per_node = int(given["RAL_NODES"]), int(given["RAL_PER_NODE"])
    node = int(given["PET_NODE_RANK"] if "PET_NODE_RANK" in given else given["RANK"])
    address = given["PET_MASTER_ADDR"] if "PET_MASTER_ADDR" in given else given["MASTER_ADDR"]
    port = given["PET_MASTER_PORT"] if "PET_MASTER_PORT" in given else given["MASTER_PORT"]
    return [
        rendezvous_env(node * per_node + place, place, nodes * per_node, address, port)
        for place in range(per_node)
    ]


RANKS = {"slurm": ranks_from_slurm, "deepspeed": of_deepspeed, "kubeflow": of_kubeflow}


def run_ranks(
    ranks: Sequence[Mapping[str, str]], command: Sequence[str], spec: Path, failure: Path, grace: float
) -> None:
    """Run processes on this machine until all have ended.

    Args:
        ranks: the variables of each, with at least RANK and WORLD_SIZE.
        command: what each runs, before the path of `spec`.
        spec: the run's specification.
        failure: where the first process of the job to fail leaves word; when it appears, all are ended.
        grace: seconds between asking processes to end and killing them, when this process is asked to end.

    Raises:
        UserError: a process of the job failed.
        KeyboardInterrupt, SystemExit: this process was asked to end; the others have ended.
    """
    if (known := read_failure(failure)) is not None:  # a scheduler started a pod or task again, or late
        raise known
    children: list[subprocess.Popen] = []
    patience = AFTER_FAILURE
    try:
        for rank in ranks:
            children.append(
                subprocess.Popen(
                    [*command, str(spec)],
                    env=os.environ | rank,
                    preexec_fn=die_with_parent,
                    start_new_session=True,  # Ctrl-C is for the launcher, which then asks them to save
                )
            )
        if _all_end_well(children, failure):
            patience = 0.0
            return
        _state_cause(children, ranks, failure)
    except (KeyboardInterrupt, SystemExit):
        patience = grace
        raise
    finally:
        _end(children, patience)
    raise read_failure(failure) or UserError(f"Training failed, and {failure} cannot be read.", "bug")


def _all_end_well(children: Sequence[subprocess.Popen], failure: Path) -> bool:
    """Wait until all have ended with 0 (True), or one has not or word of a failure has appeared (False)."""
    last_look = time.monotonic()
    while True:
        codes = [child.poll() for child in children]
        if any(code not in (None, 0) for code in codes):
            return False
        if all(code == 0 for code in codes):
            return True
        if time.monotonic() - last_look > 0.5:  # may be a network file system
            last_look = time.monotonic()
            if failure.exists():
                return False
        time.sleep(0.1)


def _state_cause(
    children: Sequence[subprocess.Popen], ranks: Sequence[Mapping[str, str]], failure: Path
) -> None:
    """Leave word of what a dead process could not say itself.

    A killed process makes the others fail in their exchange, and one of them may have been quicker to say so: then
    the kill is the better word.
    """
    time.sleep(0.3)
    codes = [child.poll() for child in children]
    dead = [(rank, code) for rank, code in zip(ranks, codes, strict=True) if code]
    dead.sort(key=lambda item: (item[1] >= 0, item[1] == LOST_PEER))  # killed ones first, victims last
    if not dead:
        return
    rank, code = dead[0]
    who = f"Training process {rank['RANK']} of {rank['WORLD_SIZE']} on {socket.gethostname()}"
    if code in (-signal.SIGTERM, -signal.SIGHUP, ASKED_TO_END):
        write_failure(failure, f"{who} was asked to end.", "interrupted", True)
    elif code < 0:
        known = read_failure(failure)
        why = " The machine may have run out of memory." if code == -signal.SIGKILL else ""
        words = f"{who} ended with signal {-code} ({signal.Signals(-code).name}).{why}"
        write_failure(failure, words, "lost_process", True, replace=known is not None and known.kind == "bug")
    else:
        write_failure(
            failure,
            f"{who} ended with exit code {code}; its own lines stand above.",
            "lost_process",
            True,
        )


def _end(children: Sequence[subprocess.Popen], patience: float) -> None:
    """Ask those that still run to end, and after `patience` seconds, or a second Ctrl-C, kill them."""
    try:
        for child in children:
            if child.poll() is None:
                child.terminate()
        end = time.monotonic() + patience
        while time.monotonic() < end and any(child.poll() is None for child in children):
            time.sleep(0.05)
    finally:
        for child in children:
            kill_group(child)


def main() -> None:
    """Run this machine's processes, as the scheduler's variables tell."""
    where, grace, spec, *command = sys.argv[1:]
    on_request_to_end(_asked)
    failure = Path(read_json(Path(spec))["failure"])
    try:
        run_ranks(RANKS[where](os.environ), command, Path(spec), failure, float(grace))
    except UserError as error:
        sys.exit(f"error: {error}")
    except (KeyboardInterrupt, SystemExit):
        host = socket.gethostname()
        write_failure(
            failure,
            f"Training was asked to end on {host}. Rerun the same command to resume.",
            "interrupted",
            True,
        )
        sys.exit(ASKED_TO_END)


def _asked(number: int, frame: object) -> None:
    ignore_requests_to_end()  # a scheduler may ask twice; the first time counts
    sys.exit(ASKED_TO_END)


if __name__ == "__main__":
    main()
