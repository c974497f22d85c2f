"""--help of every module with a command line: it works, and waits for no library that takes seconds to import."""

import json
import re
import sys

import pytest
from conftest import ROOT

HEAVY = (
    "torch",
    "pandas",
    "prefect",
    "dvc",
    "great_expectations",
    "dask",
    "deepspeed",
    "matplotlib",
    "sklearn",
)

# Of tests/ only these are commands for people; the others stand in for sbatch, kubectl and a killed process.
TESTS = ("tests/stages.py", "tests/same_outputs.py")


def modules() -> list[str]:
    """The files that `python -m` or `python` can start."""
    files = [
        path
        for name in ("ral", "tasks", "flows", "benchmarks", "docs")
        for path in (ROOT / name).rglob("*.py")
    ]
    files += [ROOT / name for name in TESTS]
    found = [
        path for path in files if re.search(r'^if __name__ == "__main__":', path.read_text(), re.MULTILINE)
    ]
    return sorted(
        path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".").removesuffix(".__main__")
        for path in found
    )


def test_the_walk_finds_the_commands() -> None:
    assert {"ral.release", "ral.training", "tasks.train", "flows.compare", "ral.processes"} <= set(modules())


# A fork of one process for each module: what a module imports is its own, and the interpreter starts once.
EACH_IN_A_FORK = f"""
import json, os, runpy, sys, tempfile, traceback
import ral.config, ral.log
assert not [name for name in {HEAVY!r} if name in sys.modules]
ends = {{}}
for module in sys.argv[1:]:
    with tempfile.TemporaryFile("w+") as out:
        child = os.fork()
        if not child:
            os.dup2(out.fileno(), 1)
            os.dup2(out.fileno(), 2)
            sys.argv = [module, "--help"]
            code = 1
            try:
                runpy.run_module(module, run_name="__main__", alter_sys=True)
                print("it ran")
            except SystemExit as end:
                code = end.code or 0
            except BaseException:
                traceback.print_exc()
            heavy = [name for name in {HEAVY!r} if name in sys.modules]
            if heavy:
                print("imports", *heavy)
                code = 1
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        out.seek(0)
        ends[module] = code, out.read()
print(json.dumps(ends))
"""


@pytest.fixture(scope="module")
def ends(run) -> dict[str, tuple[int, str]]:
    """Exit code of each module's --help, and what it printed."""
    return json.loads(run(sys.executable, "-c", EACH_IN_A_FORK, *modules(), cwd=ROOT).stdout)


@pytest.mark.parametrize("module", modules())
def test_help_works_and_imports_nothing_slow(module: str, ends: dict[str, tuple[int, str]]) -> None:
    code, printed = ends[module]
    assert code == 0, printed
    assert printed.startswith("usage: ")
    assert "--help" in printed


def test_help_is_printed_by_a_started_module(run) -> None:
    """As a user types it, not only as the test above runs it."""
    printed = run(sys.executable, "-m", "flows.train_ral", "--help", cwd=ROOT).stdout
    assert "python -m flows.train_ral" in printed
