"""The flow is dvc.yaml's stages in their order, and sends nothing to anybody."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from stages import GRAPH, ROOT, stages

from flows import nightly
from flows.settings import STAGES, address, stage_range


def test_the_stages_of_the_flows_are_those_of_the_graph() -> None:
    assert list(STAGES) == list(stages())


def test_dvc_knows_each_stage_by_its_address() -> None:
    yaml = YAML(typ="safe", pure=True)
    for path in GRAPH:
        prefix = "" if path == "dvc.yaml" else f"{path}:"
        for name in yaml.load((ROOT / path).read_text())["stages"]:
            assert address(name) == f"{prefix}{name}"


def test_a_night_runs_every_stage_in_its_order() -> None:
    parts = (nightly.LOOK, nightly.TRAIN, nightly.EVALUATE)
    assert [name for part in parts for name in stage_range(*part)] == list(STAGES)


def test_deployments_are_declared_as_the_readme_says() -> None:
    content = YAML(typ="safe", pure=True).load((ROOT / "prefect.yaml").read_text())
    for deployment in content["deployments"]:
        path, function = deployment["entrypoint"].split(":")
        text = (ROOT / path).read_text()
        flow = deployment["name"].removesuffix("-kubernetes")  # the same flow in another work pool
        assert re.search(rf'@flow\(\s*name="{re.escape(flow)}"[^@]*?\)\ndef {function}\(', text), deployment[
            "name"
        ]
        assert f"{flow}/{deployment['name']}" in (ROOT / "README.md").read_text()
    assert [deployment["name"] for deployment in content["deployments"]] == [
        "train-ral",
        "nightly",
        "nightly-kubernetes",
        "compare",
    ]


def test_a_place_held_when_the_server_died_is_freed() -> None:
    """Prefect's default keeps the leases of deployments in memory, and never frees one that it forgot."""
    script = (
        "from prefect.settings import get_current_settings as s; print(s().server.concurrency.lease_storage)"
    )
    env = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    shown = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=env, capture_output=True, text=True, check=True
    ).stdout
    assert shown.strip().endswith(".filesystem")


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
        "import ral.data.validation.run; assert os.environ['GX_ANALYTICS_ENABLED'] == 'False'"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=env, check=True)


def test_no_path_of_a_machine_in_the_project() -> None:
    home = str(Path.home())
    if home == "/":
        pytest.skip("the home folder of this user is /")
    for path in subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split():
        if (ROOT / path).suffix in (".py", ".md", ".yaml", ".toml", ".lock"):
            assert f"{home}/" not in (ROOT / path).read_text(), path
