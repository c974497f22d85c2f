"""Continuous integration: the workflow, .ci/run and the hooks run what make runs, on the Pythons that are supported."""

import os
import re
import tomllib

import pytest
from conftest import ROOT
from ruamel.yaml import YAML

MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([\w-]+):", MAKEFILE, re.MULTILINE))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))


def read(path: str) -> dict:
    return YAML(typ="safe", pure=True).load((ROOT / path).read_text())


def supported() -> list[str]:
    """Python versions of the classifiers, oldest first."""
    found = (
        re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", line) for line in PROJECT["classifiers"]
    )
    return [match[1] for match in found if match]


def is_command(text: str) -> bool:
    """Whether a line is .ci/run, or make with targets that there are."""
    words = text.split()
    return words == [".ci/run"] or (words[0] == "make" and len(words) > 1 and set(words[1:]) <= TARGETS)


def steps(workflow: dict) -> list[dict]:
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_runs_make_or_what_ci_runs(path) -> None:
    workflow = read(str(path.relative_to(ROOT)))
    commands = [line for step in steps(workflow) for line in step.get("run", "").splitlines()]
    assert ".ci/run" in commands
    assert not [command for command in commands if not is_command(command)]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_may_only_read_and_names_versions_of_actions(path) -> None:
    workflow = read(str(path.relative_to(ROOT)))
    assert workflow["permissions"] == {"contents": "read"}
    assert not [job for job in workflow["jobs"].values() if "permissions" in job]
    for step in steps(workflow):
        assert "run" in step or re.fullmatch(r"actions/(checkout|setup-python)@v\d+", step["uses"]), step
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"] == {"persist-credentials": False}


def test_the_pythons_are_those_of_the_classifiers() -> None:
    jobs = read(".github/workflows/ci.yml")["jobs"]
    assert jobs["test"]["strategy"]["matrix"]["python-version"] == supported()
    chosen = [
        step["with"]["python-version"]
        for step in jobs["long"]["steps"]
        if "setup-python" in step.get("uses", "")
    ]
    assert [sorted(versions.split()) for versions in chosen] == [supported()]
    assert PROJECT["requires-python"] == f">={supported()[0]}"
    assert f'target-version = "py{supported()[0].replace(".", "")}"' in (ROOT / "pyproject.toml").read_text()


def test_torch_comes_from_the_index_without_cuda_through_the_variable_of_the_makefile() -> None:
    (name,) = read(".github/workflows/ci.yml")["env"]
    assert f"\n{name} ?=\n" in MAKEFILE  # `?=` takes the environment's value
    assert f"{name}={read('.github/workflows/ci.yml')['env'][name]}" in MAKEFILE  # the example of its comment


def test_long_tests_run_every_night_and_nothing_else_then() -> None:
    workflow = read(".github/workflows/ci.yml")
    (night,) = workflow["on"]["schedule"]
    assert re.fullmatch(r"\d+ \d+ \* \* \*", night["cron"])
    assert workflow["jobs"]["test"]["if"] == "github.event_name != 'schedule'"
    assert "github.event_name == 'schedule'" in workflow["jobs"]["long"]["if"]
    assert [step["run"] for step in workflow["jobs"]["long"]["steps"] if "run" in step] == ["make test-long"]


def test_ci_checks_style_and_types_before_it_tests() -> None:
    script = ROOT / ".ci/run"
    assert os.access(script, os.X_OK)
    lines = script.read_text().splitlines()
    assert [line for line in lines if line.startswith("make ")] == ["make lint", "make test"]
    assert "set -euo pipefail" in lines
    assert {"lint", "test"} <= TARGETS


def test_hooks_run_the_lines_of_make_lint_and_download_nothing() -> None:
    lint = re.search(r"^lint:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)
    (repository,) = read(".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"
    assert {hook["language"] for hook in repository["hooks"]} == {"system"}
    assert [hook["entry"] for hook in repository["hooks"]] == [
        f".venv/bin/{line.strip()}" for line in lint[1].splitlines()
    ]
