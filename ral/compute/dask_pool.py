"""Runs function calls on Dask workers: threads, local processes, SLURM jobs, or an existing scheduler.

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
from ral.extras import install_command
from ral.processes import die_with_parent

Report = Callable[[int], None]

# Default number of SLURM jobs.
DEFAULT_JOBS = 4

# Pending or running calls of a stream per worker; more would only take memory.
STREAM_DEPTH = 2


# A module-level function, so that other processes can import it, with a keyword argument `report`.
Work = Callable[..., Any]


class Pool:
    """Workers that execute function calls; see `open_pool`."""

    def __init__(self, workers: int, client: Any = None) -> None:
        self.workers, self._client = workers, client

    def run(
        self, work: Work, items: Sequence[tuple[Any, ...]], sizes: Sequence[int], report: Report
    ) -> list[Any]:
        """Call `work(*item, report=...)` for each item, and return the results in the order of the items.

        Args:
            work: a module-level function.
            items: its arguments.
            sizes: units of progress per item, for workers in other processes; threads report during the work.
            report: called with progress, from any thread.

        Raises:
            UserError: the scheduler was lost, or workers repeatedly. The first exception of `work` is raised too.
        """
        if self._client is None:
            return self._run_threads(work, items, report)
        return self._run_client(work, items, sizes, report)

    def stream(self, parts: Iterable[Any]) -> Iterator[Any]:
        """Yield results of delayed calls in order; only a few calls are pending or running at a time.

        Raises:
            UserError: the scheduler was lost, or workers repeatedly. The first exception of a call is raised too.
        """
        pending: deque[Any] = deque()
        with ThreadPoolExecutor(self.workers) as threads:
            try:
                for part in parts:
                    if self._client is None:
                        pending.append(threads.submit(_compute, part))
                    else:
                        pending.append(self._client.compute(part))
                    if len(pending) >= STREAM_DEPTH * self.workers:
                        yield self._result(pending)
                while pending:
                    yield self._result(pending)
            finally:
                for future in pending:
                    future.cancel()

    def _result(self, pending: deque[Any]) -> Any:
        if self._client is None:
            return pending.popleft().result()
        with _lost_workers():
            return pending.popleft().result()

    def _run_threads(self, work: Work, items: Sequence[tuple[Any, ...]], report: Report) -> list[Any]:
        stop = threading.Event()

        def guarded(amount: int) -> None:
            if stop.is_set():  # another call has failed; Dask would let this one finish
                raise _Stopped
            report(amount)

        try:
            tasks = [dask.delayed(work, pure=False)(*item, report=guarded) for item in items]
            return list(dask.compute(*tasks, scheduler="threads", num_workers=self.workers))
        finally:
            stop.set()

    def _run_client(
        self, work: Work, items: Sequence[tuple[Any, ...]], sizes: Sequence[int], report: Report
    ) -> list[Any]:
        from distributed import as_completed

        futures = [self._client.submit(work, *item, report=_no_progress, pure=False) for item in items]
        index_of = {future.key: index for index, future in enumerate(futures)}
        results: list[Any] = [None] * len(items)
        try:
            with _lost_workers():
                for future in as_completed(futures):
                    index = index_of[future.key]
                    results[index] = future.result()
                    report(sizes[index])
        finally:
            self._client.cancel(futures)
        return results


@contextmanager
def _lost_workers() -> Iterator[None]:
    """Turn the loss of the scheduler, or the repeated loss of workers, into a clear error."""
    from distributed import KilledWorker
    from distributed.client import FutureCancelledError

    try:
        yield
    except FutureCancelledError:
        raise UserError(
            "Lost connection to the Dask scheduler. Restart it with its workers, then run again: finished "
            "work is cached.",
            kind="lost_process",
            retry=True,
        ) from None
    except KilledWorker as error:
        raise UserError(
            f"A Dask worker died {error.allowed_failures + 1} times in a row, possibly out of memory. Check "
            "its log, give "
            "it more memory (dask.memory), and run again: finished work is cached.",
            kind="lost_process",
            retry=True,
        ) from None


def _compute(part: Any) -> Any:
    return dask.compute(part, scheduler="synchronous")[0]


class _Stopped(Exception):
    """Aborts a call whose result is no longer needed."""


def _no_progress(_: int) -> None:
    """Ignore progress: worker processes report only completed items."""


@contextmanager
def open_pool(target: DaskTarget) -> Iterator[Pool]:
    """Start or connect the workers of `target`; while the pool is open, Dask dataframes run there too.

    Raises:
        UserError: a package is missing, or no worker was available in time.
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
        raise UserError(f"Dask workers need an additional package: {install_command('cluster')}") from None
    with ExitStack() as stack:
        # Workers without a scheduler exit by themselves; they hold no state that could be lost.
        stack.enter_context(dask.config.set({"distributed.scheduler.allowed-failures": 3}))
        if target.target == "address":
            client = _connect(stack, Client, target)
            workers = target.workers or len(client.scheduler_info(n_workers=-1)["workers"])
        else:
            workers = target.workers or (cores if target.target == "local" else DEFAULT_JOBS)
            cluster = stack.enter_context(
                _local(target, workers) if target.target == "local" else _slurm(target)
            )
            client = stack.enter_context(Client(cluster))
            if target.target == "slurm":
                cluster.scale(jobs=workers)
                _wait(client, target, "SLURM has not started a job for it (see squeue)")
        yield Pool(workers, client)


def _local(target: DaskTarget, workers: int) -> Any:
    from distributed import LocalCluster

    return LocalCluster(
        n_workers=workers,
        threads_per_worker=1,
        memory_limit=target.memory,
        host="127.0.0.1",  # not reachable from other machines
        dashboard_address=None,
        preload=["ral.compute.dask_pool"],
    )


def _slurm(target: DaskTarget) -> Any:
    try:
        from dask_jobqueue import SLURMCluster
    except ImportError:
        raise UserError(f"Dask on SLURM needs an additional package: {install_command('slurm')}") from None
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
        connected = stack.enter_context(client(target.address, timeout=target.wait))
    except (OSError, TimeoutError):
        raise UserError(
            f"No Dask scheduler responds at {target.address}. Start it (dask scheduler), or correct dask.address.",
            kind="lost_process",
            retry=True,
        ) from None
    _wait(connected, target, f"the scheduler at {target.address} has none (start one: dask worker ADDRESS)")
    return connected


def _wait(client: Any, target: DaskTarget, reason: str) -> None:
    try:
        client.wait_for_workers(1, timeout=target.wait)
    except TimeoutError:
        raise UserError(
            f"No Dask worker was available within {target.wait} s: {reason}.", kind="queue", retry=True
        ) from None


def dask_setup(worker: Any) -> None:
    """Preload of each local worker: it exits with the step that started it, and leaves Ctrl-C to the step."""
    die_with_parent()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
