"""Process management: child processes that do not outlive their parent.

python -m ral.processes PID SECONDS               # guard: when PID has ended, ends its remaining descendants
python -m ral.processes on-parent-exit COMMAND    # runs COMMAND if stdin closes without a clean shutdown
"""

import argparse
import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any, NoReturn

# Exit code of a rank that ended because it lost another one, which is the root cause.
LOST_PEER = 69


# Signals that request termination; SIGHUP is sent when the terminal or ssh connection is closed.
TERMINATION_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


def on_termination_signal(handler: Callable[[int, FrameType | None], object]) -> None:
    """Call `handler(number, frame)` on SIGTERM, and on SIGHUP unless it is ignored (as under nohup)."""
    for number in TERMINATION_SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler)


def ignore_termination_signals() -> None:
    """Ignore further termination signals, so that a shutdown in progress is not interrupted."""
    for number in TERMINATION_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def die_with_parent(by: signal.Signals = signal.SIGKILL) -> None:
    """Have the kernel send `by` to this process when its parent ends, even by `kill -9` (Linux only, else a no-op)."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, by)


def exit_now(code: int) -> NoReturn:
    """Exit at once, without the interpreter's shutdown; for members of a torch process group.

    Some gloo threads outlive `destroy_process_group`, because DeepSpeed keeps its groups. If such a thread
    releases the last tensor of a finished collective during interpreter shutdown, Python ends the thread
    inside C++ code and the process aborts after all work is done: "terminate called without an active
    exception", SIGABRT.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def terminate_group(process: subprocess.Popen[Any], timeout: float = 5.0) -> None:
    """Terminate a process started with `start_new_session=True` and its process group: SIGTERM, then SIGKILL.

    Waits for its children too: on SIGTERM, DVC exits at once while the training that it started saves a
    checkpoint.

    Args:
        process: leader of the process group.
        timeout: seconds between SIGTERM and SIGKILL.
    """
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline and (process.poll() is None or _group_is_alive(process.pid)):
        time.sleep(0.05)
    kill_group(process)


def _group_is_alive(group: int) -> bool:
    """Whether a process of the group is still running; zombies do not count."""
    import psutil

    for process in psutil.process_iter(["status"]):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.getpgid(process.pid) == group and process.info["status"] != psutil.STATUS_ZOMBIE:
                return True
    return False


def kill_group(process: subprocess.Popen[Any]) -> None:
    """Kill a process started with `start_new_session=True` and its process group, and wait for it."""
    with contextlib.suppress(ProcessLookupError):  # the whole group may have ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def start_guard(timeout: float = 9.0) -> None:
    """Start a guard for this process, for children started by libraries, which cannot use `die_with_parent`.

    Args:
        timeout: seconds between SIGTERM and SIGKILL for what this process left; training saves a checkpoint.
    """
    subprocess.Popen(
        [sys.executable, "-m", "ral.processes", str(os.getpid()), str(timeout)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C must not reach the guard
    )


@contextlib.contextmanager
def run_on_parent_exit(command: Sequence[str]) -> Iterator[None]:
    """Run `command` if this process is killed inside the block; its output is discarded.

    For resources on other machines, such as a job in a queue, that would outlive a `kill -9` of this process.
    """
    watcher = subprocess.Popen(
        [sys.executable, "-m", "ral.processes", "on-parent-exit", *command],
        stdin=subprocess.PIPE,  # closes when this process ends, for whatever reason
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield
    finally:
        assert watcher.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            watcher.stdin.write(_CLEAN_EXIT)
            watcher.stdin.close()
        watcher.wait()


_CLEAN_EXIT = b"done"


def _run_on_unclean_exit(command: Sequence[str]) -> None:
    if sys.stdin.buffer.read() != _CLEAN_EXIT:
        subprocess.run(command)


def guard(pid: int, timeout: float, interval: float = 0.5) -> None:
    """Wait for process `pid` to end, then terminate those of its descendants, polled while it ran, that still
    run.

    They get SIGTERM, and SIGKILL after `timeout` seconds; meanwhile training saves a checkpoint.
    """
    import psutil

    descendants: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        watched = psutil.Process(pid)
        while watched.is_running() and watched.status() != psutil.STATUS_ZOMBIE:
            descendants = [p for p in watched.children(recursive=True) if p.pid != os.getpid()] or descendants
            time.sleep(interval)
    for process in descendants:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    for process in psutil.wait_procs(descendants, timeout=timeout)[1]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", metavar="PID | on-parent-exit", help="process to guard, or on-parent-exit")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="what on-parent-exit runs")
    options = parser.parse_args()
    if options.what == "on-parent-exit":
        _run_on_unclean_exit(options.command)
    else:
        guard(int(options.what), float(options.command[0]))
