"""DVC's own queue of experiments, killed: the workspace stays as it was, and the queue ends as if nothing had
happened.
"""

import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from conftest import SMALL, copy_project, processes_in, set_params

from flows.workspace import git
from ral.files import sha256

Run = Callable[..., subprocess.CompletedProcess[str]]

EXPERIMENTS = {"one": ("train.epochs=6", "train.seed=1"), "two": ("train.seed=2",)}

# What is killed, by words of its command line: the worker, the run of an experiment, its step, and the training itself.
WORKER, EXPERIMENT, STEP, TRAINING = "queue-worker", "exec-run", "tasks.train", "ral.training"


class Queue:
    """A clone of the project with a queue of its own."""

    def __init__(
        self, folder: Path, environment: dict[str, str], run: Run, wait_until: Callable[..., None]
    ) -> None:
        self.folder, self._run, self.wait_until = folder, run, wait_until
        self._env = environment | {"RAL_STATE_DIR": str(folder.parent / f"{folder.name}_state")}

    def dvc(self, *arguments: str) -> str:
        """What a command of DVC prints; it must succeed."""
        return self._run("dvc", *arguments, cwd=self.folder, **self._env).stdout

    def start(self) -> None:
        """Start the worker, which keeps the standard output of the command open as long as it lives."""
        command = ["dvc", "queue", "start"]
        subprocess.run(command, cwd=self.folder, env=self._env, stdout=subprocess.DEVNULL, check=True)
        self.wait_until(lambda: self.processes(WORKER), every=0.05)

    def add(self, *names: str) -> None:
        """Queue experiments."""
        for name in names:
            settings = [part for setting in EXPERIMENTS[name] for part in ("-S", setting)]
            self.dvc("exp", "run", "--queue", "--name", name, *settings)

    def with_status(self, status: str) -> list[str]:
        """Names of the tasks that are Queued, Running, Failed or Success."""
        lines = [line.split() for line in self.dvc("queue", "status").splitlines()]
        return [words[1] for words in lines if len(words) > 2 and words[-1] == status]

    def processes(self, words: str = "") -> list[psutil.Process]:
        """Processes that work in the clone or in a copy that an experiment runs in."""
        return [
            process
            for process in psutil.process_iter(["cmdline", "cwd", "status"])
            if (process.info["cwd"] or "").startswith(str(self.folder))
            and process.info["status"] != psutil.STATUS_ZOMBIE
            and words in " ".join(process.info["cmdline"] or [])
        ]

    def taken(self) -> bool:
        """Whether the worker has taken a task from the queue."""
        waiting = (self.folder / ".dvc/tmp/exps/celery/broker/in").glob("*.celery.msg")
        return len(list(waiting)) < len(EXPERIMENTS)

    def results(self) -> dict[str, str]:
        """The lock file of every experiment that has a result: the hashes of all that it made."""
        refs = git(self.folder, "for-each-ref", "--format=%(refname)", "refs/exps").splitlines()
        done = {ref.rsplit("/", 1)[1]: ref for ref in refs if ref.count("/") == 4}
        return {name: git(self.folder, "show", f"{ref}:dvc.lock") for name, ref in done.items()}

    def contents(self) -> dict[str, str]:
        """Hashes of the files of the workspace that a run reads or writes."""
        files = [self.folder / "params.yaml", self.folder / "dvc.lock"]
        for name in ("data", "models", "reports", "baseline"):
            files += [path for path in sorted((self.folder / name).rglob("*")) if path.is_file()]
        return {str(path.relative_to(self.folder)): sha256(path) for path in files}

    def clear(self) -> None:
        """What docs/runbook.md says to do after a kill."""
        if not self.processes(WORKER):
            while running := self.with_status("Running"):  # asked to end first, which saves a checkpoint
                self.dvc("queue", "kill", *running)
        self.wait_until(lambda: not self.processes(), every=1)
        if self.with_status("Failed"):
            self.dvc("queue", "remove", "--failed")
        for copy in (self.folder / ".dvc/tmp/exps").glob("tmp*"):
            shutil.rmtree(copy)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, run: Run) -> Path:
    """A clone in which the pipeline has run and its lock file is committed; do not change it, copy it."""
    folder = copy_project(tmp_path_factory.mktemp("queue") / "base")
    set_params(folder, SMALL | {"explain": {"show_images": False}})
    run("dvc", "repro", cwd=folder)
    git(folder, "add", "dvc.lock", "tasks/dvc.lock")
    git(folder, "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qam", "small, and run")
    return folder


@pytest.fixture(scope="module")
def reference(
    base: Path, environment: dict[str, str], run: Run, wait_until: Callable[..., None]
) -> dict[str, str]:
    """Results of a queue that is not killed."""
    folder = Path(shutil.copytree(base, base.with_name("reference"), symlinks=True))
    queue = Queue(folder, environment, run, wait_until)
    queue.add(*EXPERIMENTS)
    queue.start()
    wait_until(lambda: not queue.processes(), every=1)
    return queue.results()


@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(
    ("killed", "when"),
    [
        pytest.param((WORKER,), "taken", id="worker-at-start"),
        pytest.param((WORKER,), TRAINING, id="worker-in-training"),
        pytest.param((EXPERIMENT,), TRAINING, id="run"),
        pytest.param((STEP,), TRAINING, id="step"),
        pytest.param((WORKER, EXPERIMENT, STEP, TRAINING), TRAINING, id="all"),
    ],
)
def test_a_killed_queue_can_be_started_again(
    base: Path,
    reference: dict[str, str],
    tmp_path: Path,
    environment: dict[str, str],
    run: Run,
    wait_until: Callable[..., None],
    killed: tuple[str, ...],
    when: str,
) -> None:
    assert set(reference) == set(EXPERIMENTS)
    folder = Path(shutil.copytree(base, tmp_path / "project", symlinks=True))
    queue = Queue(folder, environment, run, wait_until)
    before = queue.contents()
    queue.add(*EXPERIMENTS)
    queue.start()
    wait_until(queue.taken if when == "taken" else lambda: queue.processes(when), every=0.05)
    for process in [found for words in killed for found in queue.processes(words)]:
        if process.is_running():  # the end of one may have ended another
            os.kill(process.pid, signal.SIGKILL)
    assert queue.contents() == before
    queue.dvc("repro")  # no lock that a killed process left is in its way
    assert git(folder, "status", "--short") == ""

    queue.clear()
    missing = set(EXPERIMENTS) - set(queue.results()) - set(queue.with_status("Queued"))
    assert missing, "nothing was killed"
    queue.add(*sorted(missing))
    queue.dvc("exp", "show", "--no-pager")
    queue.start()
    wait_until(lambda: not queue.processes(), every=1)
    assert queue.results() == reference
    assert queue.contents() == before
    assert git(folder, "status", "--short") == ""
    assert not processes_in(tmp_path)
