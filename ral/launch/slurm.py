"""SLURM: a batch script with one task per rank; the rendezvous uses SLURM's variables.

    sbatch --parsable --wait runs/ID/train.sbatch

SLURM sends SIGTERM `signal_seconds` before the time limit; training then saves a checkpoint, and the same
command resumes it. The job is cancelled when the launcher ends, even if it is killed.
"""

import contextlib
import math
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

# Default of cpus_per_task with GPUs.
CPUS_PER_GPU_TASK = 8

# Default of signal_seconds, in addition to the grace.
SIGNAL_MARGIN = 60

# States of a job ended by SLURM or the cluster; the same job may succeed later.
LOST = ("TIMEOUT", "PREEMPTED", "NODE_FAIL", "BOOT_FAIL", "DEADLINE", "REVOKED", "REQUEUED")


def plan(job: Job) -> dict[str, str]:
    """The batch script.

    Raises:
        UserError: an option contains a line break, or is not an option; times or numbers do not fit together.
    """
    slurm = job.target.slurm
    if 0 < slurm.gpus_per_node < slurm.tasks_per_node:
        raise UserError(
            f"training.slurm: {slurm.tasks_per_node} tasks_per_node, but {slurm.gpus_per_node} gpus_per_node. Each "
            "process needs its own GPU."
        )
    # Many clusters give a task one core: too few to feed a GPU.
    cpus = slurm.cpus_per_task or (CPUS_PER_GPU_TASK if slurm.has_gpus else None)
    watcher = [
        sys.executable,
        "-m",
        "ral.launch.ranks",
        "slurm",
        str(job.grace),
        str(job.spec),
        *job.command,
    ]
    srun = ["srun", "--kill-on-bad-exit=1"]
    if cpus:  # srun does not inherit it from sbatch
        srun.append(f"--cpus-per-task={cpus}")
    script = [
        "#!/bin/bash",
        *(f"#SBATCH {line}" for line in _options(job, cpus)),
        "set -euo pipefail",
        'hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")',
        "export MASTER_ADDR=${hosts%%$'\\n'*}",
        "export MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))",
        f"exec {shell_line([*srun, *watcher])}",
        "",
    ]
    return {SCRIPT: "\n".join(script)}


def _options(job: Job, cpus: int | None) -> list[str]:
    """Options of sbatch, a line each, quoted for the script.

    Raises:
        UserError: an option contains a line break, or is not an option.
    """
    slurm = job.target.slurm
    options = {
        "job-name": _name(job),
        "nodes": slurm.nodes,
        "ntasks-per-node": slurm.tasks_per_node,
        "gpus-per-node": slurm.gpus_per_node or None,
        "cpus-per-task": cpus,
        "partition": slurm.partition,
        "account": slurm.account,
        "time": slurm.time,
        "signal": f"TERM@{_signal_seconds(job)}",
        "chdir": Path.cwd(),
        "output": job.folder / "slurm-%j.out",
    }
    lines = [f"--{name}={shlex.quote(str(value))}" for name, value in options.items() if value is not None]
    for line in slurm.lines:
        if not line.startswith("-"):
            raise UserError(
                f"training.slurm.lines: {line!r} is not an option of sbatch: it must begin with `-`."
            )
    lines += ["--no-requeue", *slurm.lines]  # retries are up to the caller of the pipeline
    for line in lines:
        if not line.isprintable():
            raise UserError(
                f"training.slurm: {line!r} contains a line break or another unprintable character."
            )
    return lines


def run(job: Job) -> None:
    """Submit the script, stream the job's output, and wait until the job has ended.

    Raises:
        UserError: SLURM rejected or ended the job, or training failed.
    """
    if not shutil.which("sbatch"):
        raise UserError("sbatch not found: run this on a submit host of the cluster.")
    cancel = ["scancel", f"--name={_name(job)}"]  # the name is known before the job id
    id_file, error_file = job.folder / "sbatch.out", job.folder / "sbatch.err"
    with run_on_parent_exit(cancel), id_file.open("wb") as out, error_file.open("wb") as err:
        process = subprocess.Popen(
            ["sbatch", "--parsable", "--wait", str(job.folder / SCRIPT)],
            stdout=out, stderr=err, start_new_session=True, preexec_fn=die_with_parent,
        )  # fmt: skip
        shown = 0
        try:
            while process.poll() is None:
                shown = _show_output(job, id_file, shown)
                time.sleep(0.5)
        except (KeyboardInterrupt, SystemExit):
            _cancel(cancel, process, job.grace + 5)
            raise
        finally:
            kill_group(process)
            _show_output(job, id_file, shown)
    if process.returncode or job.failure.exists():
        raise _error(job, id_file, error_file)


def _signal_seconds(job: Job) -> int:
    """Seconds before the time limit at which SLURM signals the job.

    Raises:
        UserError: training could not save in that time.
    """
    seconds = job.target.slurm.signal_seconds
    if seconds is not None and seconds < job.grace:
        raise UserError(
            f"training.slurm.signal_seconds ({seconds}) is less than training.grace ({job.grace:g}): SLURM would "
            "end the job before a checkpoint is saved. Raise it, or remove it for the default."
        )
    return seconds or math.ceil(job.grace) + SIGNAL_MARGIN


def _cancel(cancel: list[str], process: subprocess.Popen[bytes], timeout: float) -> None:
    """Cancel the job: a pending one at once, a running one after its processes ended or `timeout` seconds passed.

    A plain scancel would kill running processes after the cluster's KillWait, which is 30 seconds by default.
    """
    subprocess.run([*cancel, "--state=PENDING"], check=False)
    subprocess.run([*cancel, "--state=RUNNING", "--signal=TERM"], check=False)
    try:
        process.wait(timeout)
    except subprocess.TimeoutExpired:
        subprocess.run([*cancel, "--signal=KILL"], check=False)
    finally:
        subprocess.run(cancel, check=False)  # in any other state


def _show_output(job: Job, id_file: Path, shown: int) -> int:
    """Copy the job's output from offset `shown` to stderr, and return the new offset."""
    job_id = _job_id(id_file)
    with contextlib.suppress(FileNotFoundError), (job.folder / f"slurm-{job_id}.out").open("rb") as stream:
        stream.seek(shown)
        new = stream.read()
        sys.stderr.write(new.decode("utf-8", errors="replace"))
        sys.stderr.flush()
        shown += len(new)
    return shown


def _job_id(id_file: Path) -> str:
    """The job id, from sbatch's `--parsable` output ID or ID;CLUSTER; empty before submission."""
    return id_file.read_text(encoding="utf-8").strip().split(";")[0]


def _error(job: Job, id_file: Path, error_file: Path) -> UserError:
    """Why a job failed, as reported by a rank or by SLURM."""
    job_id = _job_id(id_file)
    if not job_id:
        sbatch_error = error_file.read_text(encoding="utf-8", errors="replace").strip()
        return UserError(
            f"SLURM rejected the job: {sbatch_error}\nThe script is {job.folder / SCRIPT}.", "queue", True
        )
    state = _state(job_id)
    reported = read_failure(job.failure)
    resume_hint = "Rerun the same command to resume from the last checkpoint."
    if state in LOST:
        return UserError(f"SLURM ended job {job_id} ({state}). {resume_hint}", "queue", True)
    if reported is not None and reported.kind == "interrupted" and state != "CANCELLED":
        return UserError(
            f"SLURM terminated job {job_id}: time limit or preemption. {resume_hint}", "queue", True
        )
    if state == "CANCELLED":
        return UserError(f"SLURM job {job_id} was cancelled. {resume_hint}", "interrupted", True)
    if state == "OUT_OF_MEMORY":
        return UserError(
            f"SLURM job {job_id} ran out of memory. Request more (training.slurm.lines, --mem=…).",
            "memory",
        )
    output = job.folder / f"slurm-{job_id}.out"
    return reported or UserError(
        f"SLURM job {job_id} ended with state {state}; see {output}.", "lost_process", True
    )


def _state(job_id: str) -> str:
    """State of an ended job from scontrol, which needs no accounting but forgets jobs after some minutes."""
    result = subprocess.run(["scontrol", "--oneliner", "show", "job", job_id], capture_output=True, text=True)
    match = re.search(r"\bJobState=([A-Z_]+)", result.stdout)
    return match[1] if match else "unknown"


def _name(job: Job) -> str:
    return f"ral-{job.folder.name}"
