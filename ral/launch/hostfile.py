"""DeepSpeed's launcher on the machines of a hostfile.

With ssh, from one machine (pdsh starts the ranks on the others):

    python -m deepspeed.launcher.runner --hostfile runs/ID/hostfile --launcher pdsh … --module ral.launch.ranks …

Without ssh, the same with `--no_ssh --node_rank N` on each machine: node 0 is started here, the others
manually or by a cluster tool, with the commands in runs/ID/launch.sh. The run's folder must be on a shared
file system.
"""

import contextlib
import logging
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from ral.errors import UserError
from ral.launch import killed
from ral.launch.base import AFTER_FAILURE, Job, read_failure, shell_line, write_failure
from ral.processes import die_with_parent, run_on_parent_exit, terminate_group

logger = logging.getLogger(__name__)

# Otherwise ssh waits for a machine without a network long after training has ended; pdsh gives it a session of its own.
SSH_OPTIONS = "-o ServerAliveInterval=15 -o ServerAliveCountMax=3"


def plan(job: Job) -> dict[str, str]:
    """The hostfile and the command for each machine; with ssh, one command for all."""
    hosts = _hosts(job)
    text = "".join(f"{name} slots={slots}\n" for name, slots in hosts.items())
    lines = [shell_line(command) for command in _commands(job, hosts)]
    return {"hostfile": text, "launch.sh": "\n".join([*lines, ""])}


def run(job: Job) -> None:
    """Start DeepSpeed's launcher (without ssh, only node 0's) and wait for it.

    Raises:
        UserError: a rank or the launcher failed.
    """
    if job.target.ssh and not shutil.which("pdsh"):
        raise UserError(
            "pdsh is not installed. Install it, or set training.ssh = false and start each machine."
        )
    first, *remaining = _commands(job, _hosts(job))
    for number, command in enumerate(remaining, 1):
        logger.info("On machine %d run: %s", number, shell_line(command))
    appended = f"{os.environ.get('PDSH_SSH_ARGS_APPEND', '')} {SSH_OPTIONS}".strip()
    environment = os.environ | {"PDSH_SSH_ARGS_APPEND": appended}
    # The launcher's children do not die with it, here or on other machines; their watchers poll the failure
    # file.
    with run_on_parent_exit([sys.executable, "-m", killed.__name__, str(job.failure)]):
        process = subprocess.Popen(first, env=environment, start_new_session=True, preexec_fn=die_with_parent)
        try:
            while process.poll() is None and not job.failure.exists():
                time.sleep(0.2)
            if job.failure.exists():
                time.sleep(AFTER_FAILURE + 1)  # the watchers see it too and end their ranks
        except (KeyboardInterrupt, SystemExit):
            # The watchers of all machines see the file, and their ranks save. DeepSpeed's launcher is not signalled
            # before: it would kill them after 30 s.
            write_failure(job.failure, "Training was interrupted.", "interrupted", True)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(job.grace + 2)
            raise
        finally:
            terminate_group(process, AFTER_FAILURE)
    if process.returncode or job.failure.exists():
        raise read_failure(job.failure) or UserError(
            f"DeepSpeed's launcher ended with exit code {process.returncode}; see its output above.",
            "lost_process",
            retry=True,
        )


def _hosts(job: Job) -> dict[str, int]:
    """Machines and their slots from the user's hostfile.

    Raises:
        UserError: no hostfile is set, or a line is not `NAME slots=N`.
    """
    path = job.target.hostfile
    if path is None:
        raise UserError(
            "The hostfile launcher needs training.hostfile: a file with one line `NAME slots=N` per machine."
        )
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"Cannot read {path} (training.hostfile): {error.strerror}.") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} (training.hostfile) is not UTF-8 text.") from None
    hosts: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        match = re.fullmatch(r"([A-Za-z0-9][A-Za-z0-9._-]*)\s+slots=([1-9]\d*)", line.split("#")[0].strip())
        if match and match[1] not in hosts:
            hosts[match[1]] = int(match[2])
        elif line.split("#")[0].strip():
            problem = "repeats a machine" if match else "is not `NAME slots=N`"
            raise UserError(f"{path}, line {number}: {line.strip()!r} {problem}.")
    if len(hosts) < 2:
        raise UserError(f"{path} lists {len(hosts)} machine(s); for one, use the launcher local.")
    return hosts


def _commands(job: Job, hosts: dict[str, int]) -> list[list[str]]:
    """With ssh, one command that starts all machines; otherwise one per machine."""
    common = [
        sys.executable, "-m", "deepspeed.launcher.runner",
        "--hostfile", str(job.folder / "hostfile"),
        "--master_addr", next(iter(hosts)),
        "--master_port", str(job.port),
    ]  # fmt: skip
    ranks = ["ral.launch.ranks", "deepspeed", str(job.grace), str(job.spec), *job.command]
    program = ["--no_local_rank", "--module", *ranks]
    if not job.target.ssh:
        return [[*common, "--no_ssh", "--node_rank", str(node), *program] for node in range(len(hosts))]
    unsafe = [word for word in (*ranks, str(Path.cwd())) if not re.fullmatch(r"[\w@%+=:,./-]+", word)]
    if unsafe:  # DeepSpeed passes them unquoted to a shell on the other machines
        raise UserError(f"{unsafe[0]!r}: with ssh, paths may contain only letters, digits and @%+=:,./-_.")
    return [[*common, "--launcher", "pdsh", *program]]
