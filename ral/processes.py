"""Child processes that never outlive their parent.

python -m ral.processes PID                 # a guard: waits for PID to end, then kills what PID started and left
python -m ral.processes at-death COMMAND    # runs COMMAND when its standard input ends without a good word
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import NoReturn

# Exit code of a process that ended because another one had gone; that one is the cause.
LOST_PEER = 69


# Both ask a process to end; SIGHUP comes when the terminal or the ssh connection it was started from goes.
REQUESTS_TO_END = (signal.SIGTERM, signal.SIGHUP)


def on_request_to_end(handler: Callable[[int, FrameType | None], object]) -> None:
    """Have `handler(number, frame)` called at SIGTERM, and at SIGHUP unless that is ignored, as under nohup."""
    for number in REQUESTS_TO_END:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler)


def ignore_requests_to_end() -> None:
    """Ignore further requests: one was heard, and what it takes to end must not be cut short."""
    for number in REQUESTS_TO_END:
        signal.signal(number, signal.SIG_IGN)


def die_with_parent(by: signal.Signals = signal.SIGKILL) -> None:
    """Ask the kernel to send `by` to this process when its parent ends, even by `kill -9` (Linux; elsewhere nothing)."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, by)


def leave(code: int) -> NoReturn:
    """End this process now, without the interpreter's own shutdown; for processes of a torch process group.

    Some threads of gloo outlive `destroy_process_group`, for DeepSpeed keeps its groups. One that drops the last tensor
    of a finished exchange while the interpreter shuts down is ended by Python inside C++ code, and takes the
    process with it: "terminate called without an active exception", SIGABRT, after everything was done.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def end_group(process: subprocess.Popen, patience: float = 5.0) -> None:
    """End a process started with `start_new_session=True` and everything it started: ask first, then kill.

    Its children are waited for as well: DVC, asked to end, leaves at once, while the training that it started saves.

    Args:
        process: leader of the group.
        patience: seconds between asking and killing.
    """
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    end = time.monotonic() + patience
    while time.monotonic() < end and (process.poll() is None or _members(process.pid)):
        time.sleep(0.05)
    kill_group(process)


def _members(group: int) -> bool:
    """Whether a process of a group still runs; one that has ended and was not waited for does not."""
    import psutil

    for process in psutil.process_iter(["status"]):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.getpgid(process.pid) == group and process.info["status"] != psutil.STATUS_ZOMBIE:
                return True
    return False


def kill_group(process: subprocess.Popen) -> None:
    """Kill a process started with `start_new_session=True` and everything it started, and wait for it."""
    with contextlib.suppress(ProcessLookupError):  # the leader may be gone while its children linger
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def start_guard() -> None:
    """Start a guard over this process, for children of libraries that cannot be told to die with their parent."""
    subprocess.Popen(
        [sys.executable, "-m", "ral.processes", str(os.getpid())],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is for the process it guards
    )


@contextlib.contextmanager
def run_on_parent_exit(command: Sequence[str]) -> Iterator[None]:
    """Have `command` run if this process is killed inside the block; what it says goes nowhere.

    For what lives elsewhere, such as a job in a queue, and would outlive even `kill -9` of this process.
    """
    keeper = subprocess.Popen(
        [sys.executable, "-m", "ral.processes", "at-death", *command],
        stdin=subprocess.PIPE,  # ends when this process does, however it does
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield
    finally:
        assert keeper.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            keeper.stdin.write(_ALL_WELL)
            keeper.stdin.close()
        keeper.wait()


_ALL_WELL = b"well"


def _wait_for_death(command: Sequence[str]) -> None:
    if sys.stdin.buffer.read() != _ALL_WELL:
        subprocess.run(command)


def guard(pid: int, every: float = 0.5, patience: float = 9.0) -> None:
    """Wait until process `pid` has ended, then end those of its descendants, seen while it lived, that still run.

    They are asked first, and killed after `patience` seconds: training saves a checkpoint meanwhile.
    """
    import psutil

    descendants: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        watched = psutil.Process(pid)
        while watched.is_running() and watched.status() != psutil.STATUS_ZOMBIE:
            descendants = [p for p in watched.children(recursive=True) if p.pid != os.getpid()] or descendants
            time.sleep(every)
    for process in descendants:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    for process in psutil.wait_procs(descendants, timeout=patience)[1]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


if __name__ == "__main__":
    if sys.argv[1] == "at-death":
        _wait_for_death(sys.argv[2:])
    else:
        guard(int(sys.argv[1]))
