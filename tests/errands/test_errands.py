"""The recipes of CONTRIBUTING.md, each followed once as a patch: it takes few files, and the project's checks pass after it."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import copy_project

Run = Callable[..., subprocess.CompletedProcess[str]]

PATCHES = Path(__file__).parent


class Errand(NamedTuple):
    """What an addition may take, and its tests."""

    files: int
    """Most files that a person changes or adds, tests and docs included; files that commands write do not count."""
    tests: tuple[str, ...]
    """Tests that concern it; the first fails without it."""


ERRANDS = {
    # Poly-1, a loss with one option.
    "loss": Errand(4, ("tests/losses/test_reference.py", "tests/losses/test_losses.py")),
    # BRAX, a table with a path per image and CheXpert's labels.
    "source": Errand(4, ("tests/data/sources/test_sources.py",)),
    # Calibration in the large, a calibration metric that the report shows.
    "metric": Errand(3, (
        "tests/evaluation/test_reliability.py", "tests/evaluation/test_score.py", "tests/evaluation/test_table_rows.py",
        "tests/evaluation/test_tables.py", "tests/reporting/test_report.py",
    )),
    # scores.csv, calibrated scores of the test images; run by all flows.
    "stage": Errand(5, ("tests/evaluation/test_scores.py", "tests/evaluation/test_sealed.py")),
    # A killed run that the next one marks as crashed is reported, too.
    "notification": Errand(2, (
        "tests/flows/test_stage_runner.py::test_a_run_that_was_killed_is_marked_as_crashed",
        "tests/flows/test_stage_runner.py::test_what_is_told_of_a_run_that_failed_is_plain",
    )),
}  # fmt: skip

# What CONTRIBUTING.md tells a person to run: file -> the command that prints it; commands that write themselves.
PRINTED = {
    "docs/parameters.md": ("-m", "ral.config", "--markdown"),
    "docs/params.schema.json": ("-m", "ral.cli", "config", "schema"),
    "params.yaml": ("-m", "ral.config", "--params"),
}
WRITERS = (("tests/stages.py", "--write"), ("docs/layers.py",), ("docs/tables.py",))

# Tests that hold the registries, the docs and the layers together.
COMMON = (
    "tests/config",
    "tests/cli/test_commands.py::test_the_committed_schema_is_what_the_command_prints",
    "tests/flows/test_flow.py",
    "tests/test_artifacts.py",
    "tests/test_commands.py",
    "tests/test_docs.py",
    "tests/test_labels.py",
    "tests/test_layers.py",
    "tests/test_limits.py",
    "tests/test_stages.py",
)


def changed_files(run: Run, folder: Path) -> set[str]:
    """Files of a repository that differ from its commit or are new."""
    lines = run("git", "status", "--porcelain", "--untracked-files=all", cwd=folder).stdout.splitlines()
    return {line[3:] for line in lines}


def test_every_errand_has_a_patch() -> None:
    assert {path.stem for path in PATCHES.glob("*.patch")} == set(ERRANDS)


@pytest.mark.parametrize("name", ERRANDS)
def test_a_patch_applies_and_takes_few_files(run: Run, tmp_path: Path, name: str) -> None:
    folder = copy_project(tmp_path / "project")
    run("git", "apply", str(PATCHES / f"{name}.patch"), cwd=folder)
    changed = changed_files(run, folder)
    assert len(changed) <= ERRANDS[name].files, f"{name} takes {sorted(changed)}"
    assert any(path.startswith("tests/") for path in changed), f"{name} has no test"
    assert not changed & set(PRINTED), "a command writes this file"


@pytest.mark.long
@pytest.mark.timeout(0)
@pytest.mark.parametrize("name", ERRANDS)
def test_the_project_s_checks_pass_after_an_errand(
    run: Run, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, name: str
) -> None:
    folder = copy_project(tmp_path / "project")
    run("git", "apply", str(PATCHES / f"{name}.patch"), cwd=folder)

    def python(*arguments: str, code: int | None = 0) -> subprocess.CompletedProcess[str]:
        return run(sys.executable, *arguments, cwd=folder, code=code, PYTHONPATH=str(folder))

    by_hand = sorted(changed_files(run, folder))
    for path, command in PRINTED.items():
        (folder / path).write_text(python(*command).stdout)
    for writer in WRITERS:
        python(*writer)
    python("-m", "ruff", "check", ".")
    python("-m", "ruff", "format", "--check", ".")
    typed = [path for path in by_hand if path.endswith(".py") and not path.startswith("tests/")]
    python("-m", "mypy", "--cache-dir", str(tmp_path_factory.getbasetemp() / "mypy"), *typed)

    tests = ("-q", "-p", "no:cacheprovider", *COMMON, *ERRANDS[name].tests)
    python("-m", "pytest", *tests)
    # Without the code of the errand, its test fails.
    code = [path for path in by_hand if path.startswith(("ral/", "tasks/", "flows/", "dvc.yaml"))]
    run("git", "stash", "push", "-q", "--include-untracked", "--", *code, cwd=folder)
    failed = python("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", ERRANDS[name].tests[0], code=None)
    assert failed.returncode in (1, 2), failed.stdout
