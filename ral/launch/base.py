"""Shared by the launchers: the job, the failure file that the first failing rank writes, timeouts."""

import contextlib
import json
import os
import shlex
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

from ral.config.environment import TrainingTarget
from ral.errors import Kind, UserError
from ral.files import read_json
from ral.launch.gpus import has_gpu
from ral.records import Failure

# Command of a rank; the path of the specification follows.
RANK = (sys.executable, "-m", "ral.training")

# Seconds that ranks get to exit after another one failed. No checkpoint is written then, since that needs all
# ranks.
AFTER_FAILURE = 2.0

# Seconds to save a checkpoint after SIGTERM, by whether the ranks use GPUs: a ConvNeXt-B with AdamW and EMA has 2 GB,
# which are copied, hashed, written and flushed, and a rank first finishes up to two steps.
GRACE_GPU, GRACE_CPU = 60.0, 6.0


def grace_seconds(target: TrainingTarget) -> float:
    """Seconds between SIGTERM and SIGKILL for the ranks of a target: `training.grace`, or its default."""
    if target.grace is not None:
        return target.grace
    if target.launcher == "slurm":
        gpu = target.slurm.has_gpus
    elif target.launcher == "kubernetes":
        gpu = target.kubernetes.has_gpus
    else:
        gpu = has_gpu()
    return GRACE_GPU if gpu else GRACE_CPU


@dataclass(frozen=True)
class Job:
    """A training run to launch.

    Args:
        spec: absolute path of the specification that each rank reads.
        folder: absolute path of the run's folder.
        target: launcher and its settings.
        command: command of a rank, before `spec`.
    """

    spec: Path
    folder: Path
    target: TrainingTarget
    command: tuple[str, ...]

    @cached_property
    def failure(self) -> Path:
        """The file to which the first rank to fail writes."""
        return Path(read_json(self.spec)["failure"])

    @cached_property
    def grace(self) -> float:
        """Seconds that ranks get between SIGTERM and SIGKILL."""
        return grace_seconds(self.target)

    @cached_property
    def port(self) -> int:
        """The rendezvous port, where no scheduler assigns one."""
        return self.target.port or free_port()


class Launcher(Protocol):
    """Interface of a launcher module."""

    def plan(self, job: Job) -> dict[str, str]:
        """Files for the run's folder, by name: the exact script, commands or manifest.

        Raises:
            UserError: a setting that this launcher needs is missing.
        """

    def run(self, job: Job) -> None:
        """Start what `plan` returned, now in the run's folder, and wait until everything has ended.

        Raises:
            UserError: training failed or was interrupted.
        """


def read_failure(failure: Path) -> UserError | None:
    """The error in the failure file; None if there is none."""
    try:
        text = failure.read_text(encoding="utf-8").strip()
    except OSError:
        return None
    try:
        content = Failure.model_validate_json(text)
        return UserError(content.message, content.kind, content.retry)
    except ValueError:  # truncated, as on a full disk
        return UserError(text, "bug") if text else None


def write_failure(failure: Path, message: str, kind: Kind, retry: bool, replace: bool = False) -> None:
    """Report a failure, unless another process has already done so. The file is written atomically.

    Args:
        failure: the failure file.
        message: text for the user.
        kind: machine-readable category.
        retry: whether rerunning the same command may succeed.
        replace: whether to replace an existing report.
    """
    content = json.dumps(Failure(kind=kind, retry=retry, message=message).to_json(), ensure_ascii=False)
    draft = failure.with_name(f".{failure.name}.{socket.gethostname()}.{os.getpid()}")
    try:
        draft.write_text(content + "\n", encoding="utf-8")
        if replace:
            draft.replace(failure)
        else:
            with contextlib.suppress(FileExistsError):
                os.link(draft, failure)  # atomic, and fails if the file exists
    finally:
        draft.unlink(missing_ok=True)


def free_port() -> int:
    """A TCP port that is currently unused; concurrent runs must not share one."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def shell_line(arguments: Sequence[str]) -> str:
    """A command, quoted for a shell."""
    return shlex.join(arguments)
