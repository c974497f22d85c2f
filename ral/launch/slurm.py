"""Our own batch script for SLURM: one task per training process, which meet by SLURM's variables.

    sbatch --parsable --wait runs/ID/train.sbatch

SLURM asks training to end `signal_seconds` before the time limit; it then saves a checkpoint, and the same command
continues it. The job is cancelled when the launcher ends, however it ends.
"""

import contextlib
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from ral.errors import UserError
from ral.launch.base import Job, read_failure, shell_line
from ral.processes import die_with_parent, kill_group, run_on_parent_exit

SCRIPT = "train.sbatch"

# States of a job that SLURM or the cluster ended; the same job may go well later.
LOST = ("TIMEOUT", "PREEMPTED", "NODE_FAIL", "BOOT_FAIL", "DEADLINE", "REVOKED", "REQUEUED")


def plan(job: Job) -> dict[str, str]:
    """The batch script.

    Raises:
        UserError: an option has a line break, or is not an option.
    """
    slurm = job.target.slurm
    options = {
        "job-name": _name(job),
        "nodes": slurm.nodes,
        "ntasks-per-node": slurm.tasks_per_node,
        "gpus-per-node": slurm.gpus_per_node or None,
        "cpus-per-task": slurm.cpus_per_task,
        "partition": slurm.partition,
        "account": slurm.account,
        "time": slurm.time,
        "signal": f"TERM@{slurm.signal_seconds}",
        "chdir": Path.cwd(),
        "output": job.folder / "slurm-%j.out",
    }
    lines = [f"--{name}={shlex.quote(str(value))}" for name, value in options.items() if value is not None]
    for line in slurm.lines:
        if not line.startswith("-"):
            raise UserError(f"training.slurm.lines: {line!r} is no option of sbatch; it must begin with `-`.")
    lines += ["--no-requeue", *slurm.lines]  # who runs the pipeline decides about another try
    for line in lines:
        if not line.isprintable():
            raise UserError(f"training.slurm: {line!r} has a line break or another unprintable character.")
    watcher = [
        sys.executable,
        "-m",
        "ral.launch.ranks",
        "slurm",
        str(job.target.grace),
        str(job.spec),
        *job.command,
    ]
    srun = ["srun", "--kill-on-bad-exit=1"]
    if slurm.cpus_per_task:  # srun does not take it from sbatch
        srun.append(f"--cpus-per-task={slurm.cpus_per_task}")
    script = [
        "#!/bin/bash",
        *(f"#SBATCH {line}" for line in lines),
        "set -euo pipefail",
        'hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")',
        "export MASTER_ADDR=${hosts%%$'\\n'*}",
        "export MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))",
        f"exec {shell_line([*srun, *watcher])}",
        "",
    ]
    return {SCRIPT: "\n".join(script)}


def run(job: Job) -> None:
    """Submit the script, show the job's output, and wait until the job has ended.

    Raises:
        UserError: SLURM refused or ended the job, or training failed.
    """
    if not shutil.which("sbatch"):
        raise UserError(
            "sbatch is not found: run this on a machine of the cluster from which jobs are submitted."
        )
    cancel = ["scancel", f"--name={_name(job)}"]  # known before the job has a number
    ticket, complaint = job.folder / "sbatch.out", job.folder / "sbatch.err"
    with run_on_parent_exit(cancel), ticket.open("wb") as out, complaint.open("wb") as err:
        process = subprocess.Popen(
            ["sbatch", "--parsable", "--wait", str(job.folder / SCRIPT)],
            stdout=out, stderr=err, start_new_session=True, preexec_fn=die_with_parent,
        )  # fmt: skip
        shown = 0
        try:
            while process.poll() is None:
                shown = _show(job, ticket, shown)
                time.sleep(0.5)
        except (KeyboardInterrupt, SystemExit):
            _cancel(cancel, process, job.target.grace + 5)
            raise
        finally:
            kill_group(process)
            _show(job, ticket, shown)
    if process.returncode or job.failure.exists():
        raise _error(job, ticket, complaint)


def _cancel(cancel: list[str], process: subprocess.Popen, patience: float) -> None:
    """Cancel the job; SLURM asks its processes to end first. After `patience` seconds they are killed."""
    subprocess.run(cancel, check=False)
    try:
        process.wait(patience)
    except subprocess.TimeoutExpired:
        subprocess.run([*cancel, "--signal=KILL"], check=False)


def _show(job: Job, ticket: Path, shown: int) -> int:
    """Write what is new in the job's output to stderr; `shown` bytes were."""
    number = _number(ticket)
    with contextlib.suppress(FileNotFoundError), (job.folder / f"slurm-{number}.out").open("rb") as stream:
        stream.seek(shown)
        new = stream.read()
        sys.stderr.write(new.decode("utf-8", errors="replace"))
        sys.stderr.flush()
        shown += len(new)
    return shown


def _number(ticket: Path) -> str:
    """The job's number, with `--parsable` NUMBER or NUMBER;CLUSTER; empty before there is one."""
    return ticket.read_text(encoding="utf-8").strip().split(";")[0]


def _error(job: Job, ticket: Path, complaint: Path) -> UserError:
    """Why a job did not end well: the process's own word, or SLURM's."""
    number = _number(ticket)
    if not number:
        words = complaint.read_text(encoding="utf-8", errors="replace").strip()
        return UserError(
            f"SLURM did not take the job: {words}\nThe script is {job.folder / SCRIPT}.", "queue", True
        )
    state = _state(number)
    word = read_failure(job.failure)
    again = "Run the same command again: it continues from the last checkpoint."
    if state in LOST:
        return UserError(f"SLURM ended job {number} ({state}). {again}", "queue", True)
    if word is not None and word.kind == "interrupted" and state != "CANCELLED":
        return UserError(
            f"SLURM asked job {number} to end, for its time limit or for another job. {again}", "queue", True
        )
    if state == "CANCELLED":
        return UserError(f"SLURM job {number} was cancelled. {again}", "interrupted", True)
    if state == "OUT_OF_MEMORY":
        return UserError(
            f"SLURM job {number} needed more memory than it was given. Ask for more (training.slurm.lines, --mem=…).",
            "memory",
        )
    output = job.folder / f"slurm-{number}.out"
    return word or UserError(f"SLURM job {number} ended as {state}; see {output}.", "lost_process", True)


def _state(number: str) -> str:
    """What SLURM says of a job that has ended, without accounting; it forgets after some minutes."""
    told = subprocess.run(["scontrol", "--oneliner", "show", "job", number], capture_output=True, text=True)
    found = re.search(r"\bJobState=([A-Z_]+)", told.stdout)
    return found[1] if found else "state unknown"


def _name(job: Job) -> str:
    return f"ral-{job.folder.name}"
