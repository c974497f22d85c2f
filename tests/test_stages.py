"""Holds together dvc.yaml, the steps, their parameters and the rules of who may import whom."""

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from stages import GRAPH, PACKAGES, ROOT, code_files, declared_code, sources, stages, with_dependencies

from ral.config.base import SECTIONS, Section
from ral.config.data import UNTRACKED, DataConfig
from ral.config.params import Params

STEPS = sorted({path.stem for path in (ROOT / "tasks").glob("*.py")} - {"__init__", "step"})
# Step -> the parameters that its function takes.
PARAMS: dict[str, type[Section]] = {
    name: inspect.signature(importlib.import_module(f"tasks.{name}").run).parameters["params"].annotation
    for name in STEPS
}


def test_every_step_is_a_stage_and_runs_its_module() -> None:
    assert sorted(stages()) == STEPS
    for name, stage in stages().items():
        assert stage["cmd"] == f"exec python -m tasks.{name}"


def test_only_what_always_runs_is_apart_from_the_graph() -> None:
    apart = YAML(typ="safe", pure=True).load((ROOT / GRAPH[0]).read_text())["stages"]
    assert list(apart) == [name for name, stage in stages().items() if stage.get("always_changed")]
    assert {stage["wdir"] for stage in apart.values()} == {".."}


@pytest.mark.parametrize("name", PARAMS)
def test_declared_params_are_those_read(name: str) -> None:
    # The step that looks where untracked keys point is run by DVC every time.
    look = name == "manifest"
    keys = {
        "data": [f"data.{key}" for key in DataConfig.model_fields if key not in UNTRACKED],
        # Options of other losses decide nothing.
        "loss": ["loss.name", "loss.adjust", "loss.adjust_tau", "loss.${loss.name}"],
    }
    if (
        name == "explain"
    ):  # it must not show sealed images; of how others are scored only the intervals matter
        names = ("sealed", "replicates", "confidence", "interval", "seed")
        keys["evaluate"] = [f"evaluate.{key}" for key in names]
    if name == "train":  # which findings validation is averaged over
        keys["evaluate"] = ["evaluate.min_positives"]
    read = [key for section in PARAMS[name].model_fields for key in keys.get(section, [section])]
    assert stages()[name].get("params", []) == ([] if look else read)
    assert stages()[name].get("always_changed", False) == look


@pytest.mark.parametrize("source", sources())
@pytest.mark.parametrize("name", PARAMS)
def test_declared_code_is_what_is_imported(name: str, source: str) -> None:
    if stages()[name].get("always_changed"):
        assert not declared_code(name, source)
        return
    # What some reader imports is declared for all, so that only the reader's own file changes with data.source.
    shared = set().union(*(code_files(name, other) for other in sources()))
    readers = {f"ral/data/sources/{other}.py" for other in sources()} & shared
    assert declared_code(name, source) == shared - readers | (
        {f"ral/data/sources/{source}.py"} if readers else set()
    )
    assert code_files(name, source) <= declared_code(name, source)


def test_dvc_yaml_is_what_the_generator_writes() -> None:
    text = (ROOT / "dvc.yaml").read_text()
    assert text == with_dependencies(), "python tests/stages.py --write"


def test_a_plot_is_no_dependency_of_training() -> None:
    for source in sources():
        assert not any("reporting" in path or "evaluation" in path for path in code_files("train", source))


def test_sections_are_those_of_the_whole_file() -> None:
    assert tuple(Params.model_fields) == SECTIONS


def test_every_parameter_has_a_line_of_doc() -> None:
    def check(model: type[Section]) -> None:
        assert model.__doc__
        for name, field in model.model_fields.items():
            nested = isinstance(field.annotation, type) and issubclass(field.annotation, Section)
            if nested:
                check(field.annotation)
            if not nested:
                assert field.description, f"{model.__name__}.{name}"

    for section in Params.model_fields.values():
        check(section.annotation)


FORBIDDEN = {"ral": {"prefect", "dvc", "flows", "tasks"}, "tasks": {"prefect", "dvc", "flows"}}


@pytest.mark.parametrize("package", FORBIDDEN)
def test_rooms_know_nothing_of_their_users(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for name in names:
                assert name.split(".")[0] not in FORBIDDEN[package], f"{path} imports {name}"


@pytest.mark.parametrize("name", PARAMS)
def test_steps_do_not_import_each_other(name: str) -> None:
    assert {
        path for source in sources() for path in code_files(name, source) if path.startswith("tasks/")
    } == {
        f"tasks/{name}.py",
        "tasks/step.py",
    }


@pytest.mark.parametrize("name", PARAMS)
def test_help_is_instant_and_names_the_command(name: str) -> None:
    heavy = ("torch", "pandas", "pyarrow", "dask", "great_expectations", "deepspeed", "prefect", "matplotlib")
    script = (
        "import runpy, sys\n"
        f"sys.argv = ['tasks.{name}', '--help']\n"
        f"try: runpy.run_module('tasks.{name}', run_name='__main__')\n"
        "except SystemExit as end: assert end.code == 0\n"
        f"sys.exit(str([m for m in {heavy!r} if m in sys.modules] or '') or 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"python -m tasks.{name}" in done.stdout


def test_every_file_tells_its_job_first() -> None:
    for package in (*PACKAGES, "benchmarks", "tests"):
        for path in (ROOT / package).rglob("*.py"):
            assert ast.get_docstring(ast.parse(path.read_text())), f"{path} has no docstring"


def test_modules_import_without_each_other() -> None:
    for path in Path(ROOT, "ral/config").glob("*.py"):
        if path.stem != "__main__":
            importlib.import_module(f"ral.config.{path.stem}".removesuffix(".__init__"))
