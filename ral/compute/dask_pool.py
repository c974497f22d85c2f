"""Spreads calls over Dask's workers: threads, processes of this machine, SLURM jobs, or a scheduler that runs already.

pip install -c constraints.txt -e '.[cluster]'   # processes and schedulers
pip install -c constraints.txt -e '.[slurm]'     # SLURM
"""

import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import dask

from ral.config.dask import DaskTarget
from ral.errors import UserError
from ral.processes import die_with_parent

Report = Callable[[int], None]

# SLURM jobs where the number is left open.
JOBS = 4

# Blocks of a stream in work or waiting for each worker; more would only take memory.
STREAMED = 2


# A function of a module, so that other processes can import it; it takes `report` by that name.
Work = Callable[..., Any]


class Pool:
    """Workers to call functions on; see `open_pool`."""

    def __init__(self, workers: int, client: Any = None) -> None:
        self.workers, self._client = workers, client

    def run(self, work: Work, items: Sequence[tuple], sizes: Sequence[int], report: Report) -> list[Any]:
        """Call `work(*item, report=...)` for each item, and return what it gave in the order of the items.

        Args:
            work: a function of a module.
            items: its arguments.
            sizes: units of progress per item; told as the work goes on (threads) or when an item is done.
            report: told of progress, from any thread.

        Raises:
            UserError: the scheduler was lost, or a worker again and again; or whatever `work` raised first.
        """
        if self._client is None:
            return self._run_threads(work, items, report)
        return self._run_client(work, items, sizes, report)

    def stream(self, parts: Iterable[Any]) -> Iterator[Any]:
        """Results of Dask's delayed calls in their order; only a few of them are in work, or wait, at a time.

        Raises:
            UserError: the scheduler was lost, or a worker again and again; or whatever a call raised first.
        """
        waiting: deque[Any] = deque()
        with ThreadPoolExecutor(self.workers) as threads:
            try:
                for part in parts:
                    if self._client is None:
                        waiting.append(threads.submit(_compute, part))
                    else:
                        waiting.append(self._client.compute(part))
                    if len(waiting) >= STREAMED * self.workers:
                        yield self._result(waiting)
                while waiting:
                    yield self._result(waiting)
            finally:
                for future in waiting:
                    future.cancel()

    def _result(self, waiting: deque[Any]) -> Any:
        if self._client is None:
            return waiting.popleft().result()
        with _lost_workers():
            return waiting.popleft().result()

    def _run_threads(self, work: Work, items: Sequence[tuple], report: Report) -> list[Any]:
        stop = threading.Event()

        def guarded(amount: int) -> None:
            if stop.is_set():  # another call has failed, and Dask would let this one run on to its end
                raise _Stopped
            report(amount)

        try:
            tasks = [dask.delayed(work, pure=False)(*item, report=guarded) for item in items]
            return list(dask.compute(*tasks, scheduler="threads", num_workers=self.workers))
        finally:
            stop.set()

    def _run_client(
        self, work: Work, items: Sequence[tuple], sizes: Sequence[int], report: Report
    ) -> list[Any]:
        from distributed import as_completed

        futures = [self._client.submit(work, *item, report=_quiet, pure=False) for item in items]
        places = {future.key: place for place, future in enumerate(futures)}
        results: list[Any] = [None] * len(items)
        try:
            with _lost_workers():
                for future in as_completed(futures):
                    place = places[future.key]
                    results[place] = future.result()
                    report(sizes[place])
        finally:
            self._client.cancel(futures)
        return results


@contextmanager
def _lost_workers() -> Iterator[None]:
    """Say for people that workers were lost again and again, or the scheduler was."""
    from distributed import KilledWorker
    from distributed.client import FutureCancelledError

    try:
        yield
    except FutureCancelledError:
        raise UserError(
            "The Dask scheduler has gone in the middle of the work. Start it again, with its workers; what is done is "
            "kept: run again.",
            kind="lost_process",
            retry=True,
        ) from None
    except KilledWorker as error:
        raise UserError(
            f"A Dask worker ended in the middle of its work, {error.allowed_failures + 1} times over. It may lack "
            "memory: look at its log, and give it more (dask.memory). What is done is kept: run again.",
            kind="lost_process",
            retry=True,
        ) from None


def _compute(part: Any) -> Any:
    return dask.compute(part, scheduler="synchronous")[0]


class _Stopped(Exception):
    """Ends a call whose result nobody waits for any more."""


def _quiet(_: int) -> None:
    """A worker process reports by being done."""


@contextmanager
def open_pool(target: DaskTarget) -> Iterator[Pool]:
    """Workers as `target` wants them; while the pool is open, Dask's own calls (dataframes) run there too.

    Raises:
        UserError: a package is missing, or no worker came in time.
    """
    cores = os.cpu_count() or 1
    if target.target == "threads":
        workers = target.workers or cores
        with dask.config.set(scheduler="threads", num_workers=workers):
            yield Pool(workers)
        return
    try:
        from distributed import Client
    except ImportError:
        raise UserError(
            "Dask's workers need a package more: pip install -c constraints.txt -e '.[cluster]'"
        ) from None
    with ExitStack() as stack:
        # Workers that lose their scheduler end by themselves; nothing is stored on them that could be lost.
        stack.enter_context(dask.config.set({"distributed.scheduler.allowed-failures": 3}))
        if target.target == "address":
            client = _connect(stack, Client, target)
            workers = target.workers or len(client.scheduler_info(n_workers=-1)["workers"])
        else:
            workers = target.workers or (cores if target.target == "local" else JOBS)
            cluster = stack.enter_context(
                _local(target, workers) if target.target == "local" else _slurm(target)
            )
            client = stack.enter_context(Client(cluster))
            if target.target == "slurm":
                cluster.scale(jobs=workers)
                _wait(client, target, "SLURM has started no job for it (squeue tells why)")
        yield Pool(workers, client)


def _local(target: DaskTarget, workers: int) -> Any:
    from distributed import LocalCluster

    return LocalCluster(
        n_workers=workers,
        threads_per_worker=1,
        memory_limit=target.memory,
        host="127.0.0.1",  # nobody else is to send it work
        dashboard_address=None,
        preload=["ral.compute.dask_pool"],
    )


def _slurm(target: DaskTarget) -> Any:
    try:
        from dask_jobqueue import SLURMCluster
    except ImportError:
        raise UserError(
            "Dask on SLURM needs a package more: pip install -c constraints.txt -e '.[slurm]'"
        ) from None
    return SLURMCluster(
        cores=1,
        processes=1,
        memory=target.memory,
        queue=target.queue,
        account=target.account,
        walltime=target.walltime,
        interface=target.interface,
        job_extra_directives=target.directives,
        job_script_prologue=[f"cd {os.getcwd()}", *target.setup],
        python=sys.executable,
        scheduler_options={"dashboard": False},
    )


def _connect(stack: ExitStack, client: Any, target: DaskTarget) -> Any:
    try:
        found = stack.enter_context(client(target.address, timeout=target.wait))
    except (OSError, TimeoutError):
        raise UserError(
            f"No Dask scheduler answers at {target.address}. Start it (dask scheduler), or correct dask.address.",
            kind="lost_process",
            retry=True,
        ) from None
    _wait(found, target, f"the scheduler at {target.address} has none (start one: dask worker ADDRESS)")
    return found


def _wait(client: Any, target: DaskTarget, reason: str) -> None:
    try:
        client.wait_for_workers(1, timeout=target.wait)
    except TimeoutError:
        raise UserError(
            f"No Dask worker came within {target.wait} s: {reason}.", kind="queue", retry=True
        ) from None


def dask_setup(worker: Any) -> None:
    """Run by each local worker as it starts: it ends with the step that started it, and leaves Ctrl-C to that."""
    die_with_parent()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
