"""Launchers: start the ranks of a training run on this machine or a cluster, and wait for them.

Each launcher is a module with two functions: `plan` returns the exact script, commands or manifest as files
and starts nothing; `run` starts them and waits. The choice of launcher never affects results.

A rank is one process, `python -m ral.training SPEC.json`. On each machine a watcher (`ral.launch.ranks`)
terminates the ranks when one fails anywhere, and reports why the first one failed.
"""

from collections.abc import Sequence
from pathlib import Path

from ral.config.environment import TrainingTarget
from ral.launch.base import RANK, Job, Launcher


def launch(spec: Path, training: TrainingTarget, run_folder: Path, command: Sequence[str] = RANK) -> None:
    """Run the training specified by `spec` until all ranks have ended.

    The launch script is written to `run_folder`. The caller must have turned SIGTERM into an exception
    (SystemExit); ranks then get `training.grace` seconds to save a checkpoint.

    Args:
        spec: JSON file for the ranks; its key `failure` names the file to which the first rank to fail
            writes.
        training: launcher and its settings.
        run_folder: folder of this run, visible to all machines.
        command: command of a rank, before the path of `spec`.

    Raises:
        UserError: a rank failed (with the cause that it or its watcher reported), no machine was available,
            or training was interrupted.
    """
    job = Job(spec.resolve(), run_folder.resolve(), training, tuple(command))
    job.failure.unlink(missing_ok=True)  # from an earlier attempt with the same run id
    launcher = _launcher(training)
    files = launcher.plan(job)
    for name, text in files.items():
        (job.folder / name).write_text(text, encoding="utf-8")
    launcher.run(job)


def dry_run(spec: Path, training: TrainingTarget, run_folder: Path, command: Sequence[str] = RANK) -> str:
    """What `launch` would start, as text: the content of each file. Nothing is started or written.

    Raises:
        UserError: a setting that this launcher needs is missing.
    """
    files = _launcher(training).plan(Job(spec.absolute(), run_folder.absolute(), training, tuple(command)))
    return "\n".join(f"# {run_folder / name}\n{text}" for name, text in files.items())


def _launcher(training: TrainingTarget) -> Launcher:
    from ral.launch import hostfile, kubernetes, local, slurm

    launchers: dict[str, Launcher] = {
        "local": local,
        "hostfile": hostfile,
        "slurm": slurm,
        "kubernetes": kubernetes,
    }
    return launchers[training.launcher]
