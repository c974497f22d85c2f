"""DeepSpeed's own launcher over the machines of a hostfile.

With ssh, from one machine (pdsh starts the others):

    python -m deepspeed.launcher.runner --hostfile runs/ID/hostfile --launcher pdsh … --module ral.launch.ranks …

Without, the same with `--no_ssh --node_rank N` on each machine: node 0 is started here, the others by hand or by a tool
of the cluster, with the commands in runs/ID/launch.sh. The run's folder must be on a file system that all see.
"""

import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from ral.errors import UserError
from ral.launch.base import AFTER_FAILURE, Job, read_failure, shell_line, write_failure
from ral.processes import die_with_parent, end_group, run_on_parent_exit


def plan(job: Job) -> dict[str, str]:
    """The hostfile and a command per machine that must be told; with ssh that is one."""
    hosts = _hosts(job)
    text = "".join(f"{name} slots={slots}\n" for name, slots in hosts.items())
    lines = [shell_line(command) for command in _commands(job, hosts)]
    return {"hostfile": text, "launch.sh": "\n".join([*lines, ""])}


def run(job: Job) -> None:
    """Start DeepSpeed's launcher (without ssh: node 0's) and wait for it.

    Raises:
        UserError: a training process failed, or the launcher itself.
    """
    if job.target.ssh and not shutil.which("pdsh"):
        raise UserError(
            "pdsh is not installed. Install it, or set training.ssh = false and start each machine."
        )
    first, *others = _commands(job, _hosts(job))
    for number, command in enumerate(others, 1):
        print(f"on machine {number} run: {shell_line(command)}", file=sys.stderr, flush=True)
    patience = AFTER_FAILURE
    # The launcher's children do not die with it, here or elsewhere; what stands beside each looks at the word of failure.
    with run_on_parent_exit([sys.executable, "-m", "ral.launch.base", str(job.failure)]):
        process = subprocess.Popen(first, start_new_session=True, preexec_fn=die_with_parent)
        try:
            while process.poll() is None and not job.failure.exists():
                time.sleep(0.2)
            if job.failure.exists():
                time.sleep(AFTER_FAILURE + 1)  # those who watch the processes have seen it too, and end them
        except (KeyboardInterrupt, SystemExit):
            write_failure(job.failure, "Training was asked to end.", "interrupted", True)
            patience = job.target.grace + 2
            raise
        finally:
            end_group(process, patience)
    if process.returncode or job.failure.exists():
        raise read_failure(job.failure) or UserError(
            f"DeepSpeed's launcher ended with exit code {process.returncode}; its own lines stand above.",
            "lost_process",
            retry=True,
        )


def _hosts(job: Job) -> dict[str, int]:
    """Names and numbers of processes from the user's hostfile, checked.

    Raises:
        UserError: there is none, or a line is not `NAME slots=N`.
    """
    path = job.target.hostfile
    if path is None:
        raise UserError(
            "The hostfile launcher needs training.hostfile: a file with a line `NAME slots=N` per machine."
        )
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(
            f"{path} cannot be read: {error.strerror}. It is named by training.hostfile."
        ) from None
    except UnicodeDecodeError:
        raise UserError(f"{path}, named by training.hostfile, is not UTF-8 text.") from None
    hosts: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        found = re.fullmatch(r"([A-Za-z0-9][A-Za-z0-9._-]*)\s+slots=([1-9]\d*)", line.split("#")[0].strip())
        if found and found[1] not in hosts:
            hosts[found[1]] = int(found[2])
        elif line.split("#")[0].strip():
            what = "names a machine twice" if found else "is not `NAME slots=N`"
            raise UserError(f"{path}, line {number}: {line.strip()!r} {what}.")
    if len(hosts) < 2:
        raise UserError(f"{path} lists {len(hosts)} machine(s); for one, use the launcher local.")
    return hosts


def _commands(job: Job, hosts: dict[str, int]) -> list[list[str]]:
    """With ssh one command that starts all machines, else one per machine."""
    common = [
        sys.executable, "-m", "deepspeed.launcher.runner",
        "--hostfile", str(job.folder / "hostfile"),
        "--master_addr", next(iter(hosts)),
        "--master_port", str(job.port),
    ]  # fmt: skip
    ranks = ["ral.launch.ranks", "deepspeed", str(job.target.grace), str(job.spec), *job.command]
    program = ["--no_local_rank", "--module", *ranks]
    if not job.target.ssh:
        return [[*common, "--no_ssh", "--node_rank", str(node), *program] for node in range(len(hosts))]
    odd = [word for word in (*ranks, str(Path.cwd())) if not re.fullmatch(r"[\w@%+=:,./-]+", word)]
    if odd:  # DeepSpeed hands them to a shell on the other machines as they are
        raise UserError(f"{odd[0]!r}: with ssh, paths may have letters, digits and @%+=:,./-_ only.")
    return [[*common, "--launcher", "pdsh", *program]]
