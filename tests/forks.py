"""Commands `python -m MODULE` as forks of a process that has imported the slow libraries before.

Each is a process of its own, with its folder, variables, output, signals and exit code; only the seconds that the imports
take are saved. That a fresh interpreter does the same is tested in tests/end_to_end/test_chain.py,
tests/training/test_resume.py and tests/tasks/test_step.py.
"""

import functools
import hashlib
import json
import os
import runpy
import select
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

ROOT = Path(__file__).parent.parent

# Stands for Python in what a command starts: the ranks of a training are forks, too.
PYTHON = """#!/bin/sh
if [ "$1 $2" = "-m ral.training" ]; then
    shift 2
    exec {command} "$@"
fi
exec {python} "$@"
"""


class Forks:
    """A process that forks itself for each command; it ends with the process that made it, and so do they."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._path = f"{self._folder.name}/socket"
        python = Path(self._folder.name, "python")
        python.write_text(
            PYTHON.format(python=sys.executable, command=shlex.join(self.command("ral.training")))
        )
        python.chmod(0o755)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(self._path)
            listener.listen(100)  # commands wait here while it imports
            self._process = subprocess.Popen(
                [sys.executable, __file__, "serve", str(listener.fileno()), python], stdin=subprocess.PIPE,
                env=os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
                pass_fds=[listener.fileno()], start_new_session=True,
            )  # fmt: skip

    def command(self, module: str) -> tuple[str, ...]:
        """The command to start in place of `python -m MODULE`, or of `python MODULE` if it ends in `.py`."""
        return (sys.executable, "-I", "-S", __file__, "ask", self._path, module)

    def script(self, text: str) -> tuple[str, ...]:
        """The command to start in place of `python -c TEXT`."""
        path = Path(self._folder.name, f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.py")
        path.write_text(text)
        return self.command(str(path))


@functools.cache
def forks() -> Forks:
    """The one of this process. No command may use a GPU: a fork of a process that has seen one cannot."""
    return Forks()


def ask(path: str, module: str, *arguments: str) -> int:
    """Have a command run, with the folder, variables and outputs of this process; signals reach it.

    Returns:
        Its exit code; negative where a signal ended it.
    """
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(path)
        request = json.dumps([module, arguments, str(Path.cwd()), dict(os.environ)]).encode()
        socket.send_fds(server, [len(request).to_bytes(4)], [0, 1, 2])
        server.sendall(request)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda number, _: server.sendall(bytes([number])))
        return int(server.recv(10))


def serve(listener: socket.socket) -> None:
    """Fork for each connection, until the standard input ends."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    while listener in select.select([listener, 0], [], [])[0]:
        connection, _ = listener.accept()
        if not os.fork():
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            listener.close()
            _attend(connection)
            os._exit(0)
        connection.close()


def _attend(connection: socket.socket) -> None:
    """Fork a command, pass signals on to it and its exit code back; it ends when the process that asked does."""
    size, outputs, _, _ = socket.recv_fds(connection, 4, 3)
    request = b""
    while len(request) < int.from_bytes(size):
        request += connection.recv(1 << 20)
    child = os.fork()
    if not child:
        connection.close()
        os._exit(_run(outputs, *json.loads(request)))
    for number in outputs:
        os.close(number)
    ended = os.pidfd_open(child)
    while ended not in (ready := select.select([ended, connection, 0], [], [])[0]):
        number = connection.recv(1) if connection in ready else b""
        os.kill(child, number[0] if number else signal.SIGKILL)
        if not number:
            return
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    connection.sendall(str(code).encode())


def _run(outputs: list[int], module: str, arguments: list[str], folder: str, env: dict[str, str]) -> int:
    """Run a module as `python -m` does; its exit code."""
    for number, output in enumerate(outputs):
        os.dup2(output, number)
        os.close(output)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = [module, *arguments]
    code: object = 0
    try:
        if module.endswith(".py"):
            runpy.run_path(module, run_name="__main__")
        else:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code or 0
        if not isinstance(code, int):
            print(code, file=sys.stderr)
    except BaseException:  # noqa: BLE001  the child must never continue as its parent
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code if isinstance(code, int) else 1


if __name__ == "__main__":
    if sys.argv[1] == "ask":
        exit_code = ask(*sys.argv[2:])
        if exit_code < 0:  # as the command did
            signal.signal(-exit_code, signal.SIG_DFL)
            os.kill(os.getpid(), -exit_code)
        sys.exit(exit_code)
    sys.executable = sys.argv[3]
    import slow_imports  # noqa: F401

    serve(socket.socket(fileno=int(sys.argv[2])))
