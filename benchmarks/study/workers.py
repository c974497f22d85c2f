"""Worker processes that train one run after another, and the parent that hands out runs."""

import contextlib
import gc
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from benchmarks.study.plan import Run
from benchmarks.study.recipes import arm
from ral.errors import UserError
from ral.launch.base import free_port
from ral.processes import die_with_parent

if TYPE_CHECKING:  # torch is imported by the workers only
    from ral.training.distributed import DistributedContext

# How often a run is started before it counts as failed, and how often a worker looks for a free port.
ATTEMPTS, PORTS = 2, 20


@dataclass(frozen=True)
class WorkerSettings:
    """What every worker is given."""

    state: Path
    device: str
    commit: str
    scales: dict[str, dict[str, float]]
    """Backbone -> arm -> scale."""
    logits: Path
    """Folder of the logits."""
    runs: Path
    """runs.csv."""


class Done(NamedTuple):
    """A finished run."""

    row: dict[str, str]
    scale: dict[str, str] | None
    """Row of scales.csv, if the scale was measured."""


class Failed(NamedTuple):
    """A run that cannot be trained."""

    reason: str


class Report(Protocol):
    """What the parent does with a run that ended."""

    def __call__(self, run: Run, outcome: Done | Failed) -> None: ...


@dataclass
class Worker:
    """A worker process, as the parent sees it."""

    process: multiprocessing.process.BaseProcess
    connection: Connection
    log: Path
    run: Run | None = None
    started: bool = False
    """Whether it has said that it is ready."""


@dataclass
class Pool:
    """Hands out runs to worker processes. A worker that ends is replaced, and its run tried once more.

    Attributes:
        settings: of the workers.
        jobs: number of workers.
        choose: the next run, given those that are in progress; None if there is none now.
        report: called when a run has ended.
    """

    settings: WorkerSettings
    jobs: int
    choose: Callable[[list[Run]], Run | None]
    report: Report
    workers: list[Worker] = field(default_factory=list)
    attempts: dict[str, int] = field(default_factory=dict)
    again: list[Run] = field(default_factory=list)

    def run(self) -> None:
        """Run until nothing is left to start.

        Raises:
            UserError: a worker ends before it is ready.
        """
        context = multiprocessing.get_context("spawn")
        try:
            while True:
                self._hand_out(context)
                if not any(worker.run for worker in self.workers):
                    return
                by_connection = {worker.connection: worker for worker in self.workers}
                for connection in wait(list(by_connection)):
                    self._receive(by_connection[connection])  # type: ignore[index]
        finally:
            for worker in self.workers:
                worker.process.kill()
                worker.process.join()

    def _hand_out(self, context: multiprocessing.context.SpawnContext) -> None:
        """Give every idle worker a run, and start workers while there is work for them."""
        while True:
            idle = [worker for worker in self.workers if worker.run is None]
            if not idle and len(self.workers) == self.jobs:
                return
            run = self.again.pop() if self.again else self.choose(self._in_progress())
            if run is None:
                return
            if not idle:
                idle = [self._start(context)]
            self.attempts[run.name] = self.attempts.get(run.name, 0) + 1
            idle[0].run = run
            with contextlib.suppress(OSError):  # it has just ended; `_receive` gives the run to another one
                idle[0].connection.send(run)

    def _in_progress(self) -> list[Run]:
        return [worker.run for worker in self.workers if worker.run is not None]

    def _start(self, context: multiprocessing.context.SpawnContext) -> Worker:
        ours, theirs = context.Pipe()
        used = {worker.log for worker in self.workers}
        logs = (self.settings.state / f"worker-{number}.log" for number in range(self.jobs))
        log = next(path for path in logs if path not in used)
        process = context.Process(target=work, args=(theirs, self.settings, log), daemon=True)
        process.start()
        theirs.close()
        worker = Worker(process, ours, log)
        self.workers.append(worker)
        return worker

    def _receive(self, worker: Worker) -> None:
        """Act on a message of a worker, or on its end."""
        try:
            message = worker.connection.recv()
        except (EOFError, OSError):
            self._replace(worker)
            return
        if isinstance(message, Done | Failed):
            run, worker.run = worker.run, None
            assert run is not None
            self.report(run, message)
        else:
            worker.started = True

    def _replace(self, worker: Worker) -> None:
        """Forget a worker that has ended; its run is tried again, or counts as failed."""
        worker.process.kill()
        worker.process.join()
        self.workers.remove(worker)
        if not worker.started:
            raise UserError(f"A worker ended before it was ready. {_last_lines(worker.log)}")
        if worker.run is None:
            return
        if self.attempts[worker.run.name] < ATTEMPTS:
            self.again.append(worker.run)
        else:
            self.report(worker.run, Failed(f"its worker ended twice. {_last_lines(worker.log)}"))


def _last_lines(log: Path, lines: int = 5) -> str:
    """The path of a log and its end."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    return "\n".join([f"The end of {log}:", *text.splitlines()[-lines:]])


def work(connection: Connection, settings: WorkerSettings, log: Path) -> None:
    """A worker: joins a process group of its own, then trains the runs that it is given."""
    die_with_parent()
    with log.open("a", encoding="utf-8") as stream:
        os.dup2(stream.fileno(), sys.stdout.fileno())
        os.dup2(stream.fileno(), sys.stderr.fileno())
    import torch

    from benchmarks.study import folds, second_phase
    from benchmarks.study.scales import measured
    from benchmarks.study.training import Place, train

    torch.set_num_threads(1)
    place = Place(
        settings.state,
        folds.read_data(settings.state),
        folds.open_pixels(settings.state),
        join(),
        settings.commit,
    )
    if place.context.device.type != settings.device:
        sys.exit(f"PyTorch {torch.__version__} does not see a GPU here: use --device cpu")
    connection.send("ready")
    while True:
        try:
            run: Run = connection.recv()
        except EOFError:
            return
        started = time.monotonic()
        try:
            known = settings.scales.setdefault(run.backbone, {})
            name, row = run.arm.partition("+")[0], None
            if arm(name).summed and name not in known:
                known[name] = measured(run, place)
                row = {
                    "arm": name, "scale": f"{known[name]:g}", "backbone": run.backbone,
                    "image_size": str(place.data.size),
                }  # fmt: skip
            scale = known.get(name, 1.0)
            if run.stage == "second_phase":
                finished = second_phase.refit(run, place, scale, settings.logits, settings.runs)
            else:
                finished = train(run, place, scale, settings.logits)
            connection.send(Done(finished, row))
        except UserError as error:
            connection.send(Failed(str(error)))
        print(f"{run.name}: {time.monotonic() - started:.1f} s", flush=True)
        gc.collect()
        if place.context.device.type == "cuda":
            torch.cuda.empty_cache()


def join() -> "DistributedContext":
    """Join a process group of one, on a port of its own."""
    from ral.training.distributed import LOOPBACK, init_process

    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": LOOPBACK}
    for attempt in range(PORTS):
        os.environ["MASTER_PORT"] = str(free_port())
        try:
            return init_process()
        except UserError:  # another worker was faster
            if attempt == PORTS - 1:
                raise
    raise AssertionError("unreachable")
