"""The flow is dvc.yaml's stages in their order, and sends nothing to anybody."""

import ast
import os
import subprocess
import sys
import tomllib
from pathlib import Path

from ruamel.yaml import YAML
from stages import ROOT, stages


def test_flow_runs_every_stage_in_the_order_of_the_graph() -> None:
    tree = ast.parse((ROOT / "flows/train_ral.py").read_text())
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    called = [
        node.func.id
        for node in ast.walk(functions["train_ral"])
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in functions
    ]
    # ast.walk goes level by level; the conditional phantom() stands a level deeper than the others.
    assert sorted(called) == sorted(stages())
    lines = (ROOT / "flows/train_ral.py").read_text()
    assert list(stages()) == sorted(stages(), key=lambda name: lines.index(f"    {name}()\n"))
    for name in stages():
        runs = [
            node.args[0].value
            for node in ast.walk(functions[name])
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "run_stage"
        ]
        assert runs == [name]


def test_deployment_is_declared_as_the_readme_says() -> None:
    content = YAML(typ="safe", pure=True).load((ROOT / "prefect.yaml").read_text())
    (deployment,) = content["deployments"]
    assert deployment["name"] == "train-ral"
    path, function = deployment["entrypoint"].split(":")
    assert f'@flow(name="train-ral")\ndef {function}(' in (ROOT / path).read_text()


def test_usage_statistics_are_off_by_default() -> None:
    assert tomllib.loads((ROOT / "prefect.toml").read_text())["server"]["analytics_enabled"] is False
    assert "analytics = false" in (ROOT / ".dvc/config").read_text()
    env = {
        name: value
        for name, value in os.environ.items()
        if name not in ("DO_NOT_TRACK", "GX_ANALYTICS_ENABLED")
    }
    script = (
        "import flows, os; from prefect.settings import get_current_settings;"
        "from prefect._internal.analytics import is_telemetry_enabled;"
        "assert not get_current_settings().server.analytics_enabled;"
        "os.environ.pop('CI', None); assert not is_telemetry_enabled();"
        "import ral.data.validation; assert os.environ['GX_ANALYTICS_ENABLED'] == 'False'"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=env, check=True)


def test_no_path_of_a_machine_in_the_project() -> None:
    home = str(Path.home())
    for path in subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split():
        if (ROOT / path).suffix in (".py", ".md", ".yaml", ".toml", ".lock"):
            assert f"{home}/" not in (ROOT / path).read_text() or home == "/", path
