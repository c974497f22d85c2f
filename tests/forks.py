"""Commands `python -m MODULE` as forks of a process that has imported the slow libraries before.

Each is a process of its own, with its folder, variables, output and exit code; only the seconds that the imports take are
saved. That a fresh interpreter does the same is tested in tests/end_to_end/test_chain.py and tests/tasks/test_step.py.
"""

import json
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

ROOT = Path(__file__).parent.parent


class Forks:
    """A process that waits for commands.

    Args:
        imports: modules that it imports at its start.
        environment: its variables; each command may set more.
    """

    def __init__(self, *imports: str, environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, *imports], env=environment | {"PYTHONPATH": str(ROOT)}, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def run(self, module: str, *arguments: str, cwd: Path, **env: str) -> tuple[int, str]:
        """Exit code of a command, and what it printed to either output."""
        assert self._process.stdin
        assert self._process.stdout
        print(json.dumps([module, arguments, str(cwd), env]), file=self._process.stdin, flush=True)
        code, printed = json.loads(self._process.stdout.readline())
        return code, printed

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def serve() -> None:
    """Fork for each line of the standard input; answer with exit code and output."""
    for line in sys.stdin:
        module, arguments, folder, env = json.loads(line)
        with tempfile.TemporaryFile("w+") as out:
            child = os.fork()
            if not child:
                for number in (1, 2):
                    os.dup2(out.fileno(), number)
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                os.chdir(folder)
                os.environ.update(env)
                os._exit(_run(module, arguments))
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            out.seek(0)
            print(json.dumps([code, out.read()]), flush=True)


def _run(module: str, arguments: list[str]) -> int:
    """Run a module as `python -m` does; its exit code."""
    sys.argv = [module, *arguments]
    code: object = 0
    try:
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
    for name in sys.argv[1:]:
        __import__(name)
    serve()
