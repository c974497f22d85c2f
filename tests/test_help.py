"""--help of every module with a command line: it works, and waits for no library that takes seconds to import."""

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


@pytest.mark.parametrize("module", modules())
def test_help_works_and_imports_nothing_slow(module: str, run) -> None:
    script = (
        "import runpy, sys\n"
        f"sys.argv = [{module!r}, '--help']\n"
        f"try: runpy.run_module({module!r}, run_name='__main__', alter_sys=True)\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "else: raise AssertionError('it ran')\n"
        f"sys.exit(', '.join(name for name in {HEAVY!r} if name in sys.modules) or 0)"
    )
    printed = run(sys.executable, "-c", script, cwd=ROOT).stdout
    assert printed.startswith("usage: ")
    assert "--help" in printed


def test_help_is_printed_by_a_started_module(run) -> None:
    """As a user types it, not only as the test above runs it."""
    printed = run(sys.executable, "-m", "flows.train_ral", "--help", cwd=ROOT).stdout
    assert "python -m flows.train_ral" in printed
