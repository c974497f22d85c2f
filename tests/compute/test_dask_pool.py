"""The same work on threads, processes, a scheduler of one's own and SLURM's jobs; whoever dies leaves no process."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from pydantic import ValidationError

from ral.compute.dask_pool import Report, open_pool
from ral.config.dask import DaskTarget
from ral.errors import UserError

pytest.importorskip("distributed", reason="needs the extra cluster")


def square(number: int, report: Report) -> int:
    report(1)
    return number**2


def refuse(number: int, report: Report) -> int:
    if number == 3:
        raise UserError(f"{number} is bad")
    time.sleep(0.01)
    report(1)
    return number


def die(number: int, folder: str, report: Report) -> int:
    """Kill the worker the first time that it meets number 1."""
    mark = Path(folder) / "died"
    if number == 1 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def always_die(number: int, report: Report) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return number


def process(number: int, report: Report) -> int:
    time.sleep(0.2)
    return os.getpid()


TARGETS = {
    "threads": DaskTarget(workers=2),
    "local": DaskTarget(target="local", workers=2, memory="1GiB"),
}


@pytest.mark.parametrize("name", TARGETS)
def test_results_come_in_order_and_progress_adds_up(name: str) -> None:
    told: list[int] = []
    with open_pool(TARGETS[name]) as pool:
        assert pool.workers == 2
        done = pool.run(square, [(n,) for n in range(20)], [1] * 20, told.append)
    assert done == [n**2 for n in range(20)]
    assert sum(told) == 20


@pytest.mark.parametrize("name", TARGETS)
def test_first_error_is_the_one_that_was_raised(name: str) -> None:
    with pytest.raises(UserError, match="3 is bad"), open_pool(TARGETS[name]) as pool:
        pool.run(refuse, [(n,) for n in range(50)], [1] * 50, lambda _: None)


def test_a_failure_stops_what_runs_beside_it(wait_until: Callable[..., None]) -> None:
    with pytest.raises(UserError, match="0 is bad"), open_pool(DaskTarget(workers=2)) as pool:
        pool.run(_long_or_bad, [(0,), (1,)], [1, 1], lambda _: None)
    wait_until(lambda: not _RUNNING)  # left alone it would run for an hour


_RUNNING: list[int] = []


def _long_or_bad(number: int, report: Report) -> None:
    if number == 0:
        time.sleep(0.2)
        raise UserError("0 is bad")
    _RUNNING.append(number)
    try:
        for _ in range(72_000):
            time.sleep(0.05)
            report(0)
    finally:
        _RUNNING.clear()


def test_killed_worker_is_replaced(tmp_path: Path) -> None:
    with open_pool(TARGETS["local"]) as pool:
        assert pool.run(die, [(n, str(tmp_path)) for n in range(4)], [1] * 4, lambda _: None) == [0, 1, 2, 3]
    assert (tmp_path / "died").exists()


def test_work_that_kills_every_worker_is_an_error_that_may_be_tried_again() -> None:
    with (
        pytest.raises(UserError, match=r"worker died .* more memory \(dask\.memory\)") as caught,
        open_pool(TARGETS["local"]) as pool,
    ):
        pool.run(always_die, [(0,)], [1], lambda _: None)
    assert (caught.value.kind, caught.value.retry) == ("lost_process", True)


OWNER = """
import sys, time
from ral.config.dask import DaskTarget
from ral.compute.dask_pool import open_pool
from tests_cluster import process
if __name__ == "__main__":
    with open_pool(DaskTarget(target="local", workers=2)) as pool:
        print(*sorted(set(pool.run(process, [(n,) for n in range(8)], [1] * 8, lambda _: None))), flush=True)
        time.sleep(3600)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_no_worker_outlives_its_owner(
    tmp_path: Path, wait_until: Callable[..., None], how: signal.Signals
) -> None:
    (tmp_path / "tests_cluster.py").write_bytes(Path(__file__).read_bytes())
    (tmp_path / "owner.py").write_text(OWNER)
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
    owner = subprocess.Popen(
        [sys.executable, str(tmp_path / "owner.py")],
        stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": path},
    )  # fmt: skip
    assert owner.stdout is not None
    workers = [int(text) for text in owner.stdout.readline().split()]
    assert len(workers) == 2
    owner.send_signal(how)
    owner.wait()
    wait_until(lambda: not any(psutil.pid_exists(pid) for pid in workers))


@pytest.fixture
def scheduler(tmp_path: Path, wait_until: Callable[..., None]) -> Iterator[str]:
    """Address of a Dask scheduler with one worker, each a process of its own."""
    file = tmp_path / "scheduler.json"
    common = ["--scheduler-file", str(file), "--no-dashboard"]
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), str(Path(__file__).parent)])
    }
    quiet: dict[str, Any] = {
        "stdout": subprocess.DEVNULL,
        "stderr": subprocess.DEVNULL,
        "env": env,
        "cwd": tmp_path,
    }
    head = [sys.executable, "-m", "distributed.cli"]
    first = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "distributed.cli.dask_scheduler",
            *common,
            "--host",
            "127.0.0.1",
            "--port",
            "0",
        ],
        **quiet,
    )
    second = None
    try:
        wait_until(lambda: file.exists() and file.read_text().strip())
        second = subprocess.Popen(
            [*head[:-1], "distributed.cli.dask_worker", *common, "--nthreads", "1", "--no-nanny"], **quiet
        )
        import json

        yield json.loads(file.read_text())["address"]
    finally:
        for process in (second, first):
            if process is not None:
                process.terminate()
                process.wait()


def test_scheduler_that_runs_already(scheduler: str) -> None:
    with open_pool(DaskTarget(target="address", address=scheduler, wait=600)) as pool:
        assert pool.workers == 1
        assert pool.run(pow_of, [(2, 3)], [1], lambda _: None) == [8]


def test_a_scheduler_that_is_killed_can_be_tried_again(scheduler: str) -> None:
    port = int(scheduler.rpartition(":")[2])
    (process,) = {
        c.pid for c in psutil.net_connections("tcp") if c.laddr.port == port and c.status == "LISTEN"
    }
    kill = threading.Timer(2, os.kill, [process, signal.SIGKILL])
    with open_pool(DaskTarget(target="address", address=scheduler, wait=600)) as pool:
        kill.start()
        with pytest.raises(UserError, match="Lost connection to the Dask scheduler") as told:
            pool.run(nap, [(1.0,)] * 30, [1] * 30, lambda _: None)
    assert told.value.retry


def test_no_scheduler_there() -> None:
    target = DaskTarget(target="address", address="tcp://127.0.0.1:1", wait=1)
    with (
        pytest.raises(UserError, match=r"No Dask scheduler responds at tcp://127\.0\.0\.1:1"),
        open_pool(target),
    ):
        pass


def nap(seconds: float, report: Report) -> None:
    time.sleep(seconds)


def pow_of(base: int, power: int, report: Report) -> int:
    return base**power


SBATCH = """#!/bin/bash
# Stands for SLURM: runs the job script at once, here.
cp "$1" "{folder}/job.sh"
setsid bash "{folder}/job.sh" > "{folder}/job.log" 2>&1 &
echo $! >> "{folder}/jobs"
echo "Submitted batch job $!"
"""
SCANCEL = """#!/bin/bash
for job in "$@"; do kill -- -"$job"; done
"""


def test_slurm_jobs_are_queued_as_wanted_and_cancelled_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wait_until: Callable[..., None]
) -> None:
    pytest.importorskip("dask_jobqueue", reason="needs the extra slurm")
    for name, text in (("sbatch", SBATCH), ("scancel", SCANCEL)):
        (tmp_path / name).write_text(text.format(folder=tmp_path) if name == "sbatch" else text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[2]), str(Path(__file__).parent)])
    )
    target = DaskTarget(
        target="slurm", workers=1, memory="1GiB", queue="gpu", account="xray", walltime="00:10:00",
        directives=["--qos=low"], setup=["echo prepared"], wait=600, interface="lo",
    )  # fmt: skip
    with open_pool(target) as pool:
        assert pool.workers == 1
        assert pool.run(pow_of, [(2, 3), (2, 4)], [1, 1], lambda _: None) == [8, 16]
    script = (tmp_path / "job.sh").read_text()
    for line in (
        "#SBATCH -p gpu",
        "#SBATCH -A xray",
        "#SBATCH -t 00:10:00",
        "#SBATCH --qos=low",
        "echo prepared",
    ):
        assert line in script
    job = int((tmp_path / "jobs").read_text().split()[0])
    wait_until(lambda: not any(p.info["pid"] and os.getpgid(p.info["pid"]) == job for p in _processes()))


def _processes() -> Iterator[psutil.Process]:
    for found in psutil.process_iter(["pid", "status"]):
        if found.info["status"] != psutil.STATUS_ZOMBIE and psutil.pid_exists(found.info["pid"]):
            yield found


@pytest.mark.parametrize("wrong", [{"target": "address"}, {"address": "tcp://a:1"}, {"memory": "much"}])
def test_targets_that_make_no_sense(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        DaskTarget(**wrong)
