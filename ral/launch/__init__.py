"""Starts the processes of a training run, here or on a cluster, and waits for them.

Each launcher has a file here and the same two functions: `plan` gives the exact script, commands or manifest as files,
and starts nothing; `run` starts them and waits. Which one is chosen never changes a result.

One process ("rank") is `python -m ral.training SPEC.json`. Wherever it runs, a watcher stands beside it
(`ral.launch.ranks`), which ends it when a rank fails anywhere, and tells why the first one failed.
"""

from collections.abc import Sequence
from pathlib import Path

from ral.config.environment import TrainingTarget
from ral.launch.base import RANK, Job, Launcher


def launch(spec: Path, training: TrainingTarget, run_folder: Path, command: Sequence[str] = RANK) -> None:
    """Run the training that `spec` specifies until all its processes have ended.

    What is launched is written into `run_folder`. SIGTERM must have been made an exception (SystemExit) by the caller;
    processes are then given `training.grace` seconds to save a checkpoint.

    Args:
        spec: JSON file for the processes; its key `failure` names the file into which the first to fail writes.
        training: where and how.
        run_folder: folder of this run, which all machines see.
        command: what a process runs, before the path of `spec`.

    Raises:
        UserError: a process failed, with its own word or that of who watched it; no machine could be had; training
            was ended from outside.
    """
    job = Job(spec.resolve(), run_folder.resolve(), training, tuple(command))
    job.failure.unlink(missing_ok=True)  # of an earlier try with the same id
    launcher = _launcher(training)
    files = launcher.plan(job)
    for name, text in files.items():
        (job.folder / name).write_text(text, encoding="utf-8")
    launcher.run(job)


def dry_run(spec: Path, training: TrainingTarget, run_folder: Path, command: Sequence[str] = RANK) -> str:
    """What `launch` would start, as text: each file under its name. Nothing is started or written.

    Raises:
        UserError: something is missing for this launcher.
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
