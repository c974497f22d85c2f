"""What the launchers share: a job, the word that the first process to fail leaves, and how long to wait for it.

python -m ral.launch.base FAILURE.json      # leaves word that the launcher was killed; processes everywhere end
"""

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

# One training process; the path of the specification follows.
RANK = (sys.executable, "-m", "ral.training")

# Seconds that processes get to end by themselves when another has failed. A checkpoint needs all, so none is waited for.
AFTER_FAILURE = 2.0


@dataclass(frozen=True)
class Job:
    """A training run to be started.

    Args:
        spec: absolute path of the specification that each process reads.
        folder: absolute path of the run's folder.
        target: where and how.
        command: what a process runs, before `spec`.
    """

    spec: Path
    folder: Path
    target: TrainingTarget
    command: tuple[str, ...]

    @cached_property
    def failure(self) -> Path:
        """The file into which the first process to fail writes."""
        return Path(read_json(self.spec)["failure"])

    @cached_property
    def port(self) -> int:
        """The port at which the processes meet, where no scheduler gives one."""
        return self.target.port or free_port()


class Launcher(Protocol):
    """A module with these two functions."""

    def plan(self, job: Job) -> dict[str, str]:
        """Files of the run's folder, by name: the exact script, commands or manifest.

        Raises:
            UserError: something that this launcher needs is missing.
        """

    def run(self, job: Job) -> None:
        """Start what `plan` wrote into the run's folder and wait until all has ended.

        Raises:
            UserError: training failed or was ended.
        """


def read_failure(failure: Path) -> UserError | None:
    """The error that a process left; None if there is none."""
    try:
        text = failure.read_text(encoding="utf-8").strip()
    except OSError:
        return None
    try:
        word = json.loads(text)
        return UserError(word["message"], word["kind"], word["retry"])
    except (ValueError, TypeError, KeyError):  # cut off, as on a full disk
        return UserError(text, "bug") if text else None


def write_failure(failure: Path, message: str, kind: Kind, retry: bool, replace: bool = False) -> None:
    """Leave word of a failure, unless another process was first.

    Args:
        failure: the file.
        message: for people.
        kind: for programs.
        retry: whether the same command may succeed later.
        replace: whether this is a better word than one that is already there.
    """
    word = json.dumps({"kind": kind, "retry": retry, "message": message}, ensure_ascii=False)
    draft = failure.with_name(f".{failure.name}.{socket.gethostname()}.{os.getpid()}")
    try:
        draft.write_text(word + "\n", encoding="utf-8")
        if replace:
            draft.replace(failure)
        else:
            with contextlib.suppress(FileExistsError):
                os.link(draft, failure)  # whole or not at all, and only for the first
    finally:
        draft.unlink(missing_ok=True)


def free_port() -> int:
    """A TCP port that nobody listens on at the moment; two runs at once must not share one."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def shell_line(arguments: Sequence[str]) -> str:
    """A command as a person may paste it into a shell."""
    return shlex.join(arguments)


if __name__ == "__main__":
    write_failure(Path(sys.argv[1]), "The launcher of training was killed.", "interrupted", True)
