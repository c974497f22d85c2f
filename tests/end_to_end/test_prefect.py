"""The flow without a server, and its deployment on a real server, taken up by a real worker."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from conftest import SMALL, copy_project, processes_in, set_params

Run = Callable[..., subprocess.CompletedProcess[str]]
STAGES = ["phantom", "manifest", "validate", "preprocess", "train", "explain", "evaluate", "report"]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with small parameters; the runs of this module share its outputs."""
    folder = copy_project(tmp_path_factory.mktemp("prefect") / "project")
    set_params(folder, SMALL)
    return folder


@pytest.fixture(scope="module")
def prefect_home(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("prefect_home"))


@pytest.fixture(scope="module")
def server(project: Path, prefect_home: str, environment: dict[str, str], wait_until) -> Iterator[str]:
    """Address of a Prefect server's API, on a port of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(
        command, cwd=project, env=environment | {"PREFECT_HOME": prefect_home}, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}/api"

    def healthy() -> bool:
        try:
            return httpx.get(f"{url}/health").status_code == 200
        except httpx.TransportError:
            return False

    try:
        wait_until(healthy, 120)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def artifacts(url: str) -> dict[str, dict]:
    """The latest artifact of each key."""
    return {item["key"]: item for item in httpx.post(f"{url}/artifacts/latest/filter", json={}).json()}


def stage_processes(folder: Path) -> list[str]:
    """Commands of the processes that work in a folder, but for this module's Prefect server."""
    return [command for command in processes_in(folder) if "prefect server start" not in command]


def test_deployment_is_run_by_a_worker(
    project: Path, server: str, prefect_home: str, environment: dict[str, str], run: Run, wait_until
) -> None:
    settings = {"PREFECT_API_URL": server, "PREFECT_HOME": prefect_home, "PWD": str(project)}
    prefect = [sys.executable, "-m", "prefect"]
    run(*prefect, "work-pool", "create", "ral-process", "--type", "process", cwd=project, **settings)
    run(*prefect, "deploy", "-n", "train-ral", "--no-prompt", cwd=project, **settings)
    worker = subprocess.Popen(
        [*prefect, "worker", "start", "--pool", "ral-process"], cwd=project, env=environment | settings,
        start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        watched = run(
            *prefect, "deployment", "run", "train-ral/train-ral", "--watch", "--watch-timeout", "400",
            cwd=project.parent, **settings,
        ).stdout  # fmt: skip
    finally:
        os.killpg(worker.pid, signal.SIGTERM)
        worker.wait(60)
    assert "Completed" in watched, watched
    tasks = httpx.post(f"{server}/task_runs/filter", json={"sort": "EXPECTED_START_TIME_ASC"}).json()
    assert [task["name"].rsplit("-", 1)[0] for task in tasks] == STAGES
    assert {task["state_type"] for task in tasks} == {"COMPLETED"}
    found = artifacts(server)
    assert "PHANTOM" in found["metrics"]["description"]
    assert '"macro"' in found["metrics"]["data"]
    assert "labels are in the vocabulary" in found["verdict"]["data"]
    assert (project / "reports/report.html").as_uri() in found["report"]["data"]
    logs = [line["message"] for line in httpx.post(f"{server}/logs/filter", json={"limit": 200}).json()]
    assert any("PHANTOM films, epoch   2 of 2: loss" in line for line in logs)
    assert run("dvc", "status", cwd=project).stdout.split() == ["manifest:", "always", "changed"]
    wait_until(lambda: not stage_processes(project))


def test_refused_data_fails_the_run_and_shows_why(
    project: Path, server: str, prefect_home: str, run: Run, phantom_copy: Path
) -> None:
    table = phantom_copy / "Data_Entry_2017.csv"
    table.write_text(table.read_text().replace("Infiltration", "Infltration"))
    params = (project / "params.yaml").read_text()
    set_params(project, {"data": {"root": str(phantom_copy)}})
    settings = {"PREFECT_API_URL": server, "PREFECT_HOME": prefect_home}
    try:
        printed = run("python", "-m", "flows.train_ral", cwd=project, code=1, **settings).stdout
    finally:
        (project / "params.yaml").write_text(params)
    assert "Infltration" in printed
    assert "Stage validate failed" in printed
    checks = artifacts(server)["verdict"]["data"]
    assert '"passed": false' in checks
    runs = httpx.post(f"{server}/flow_runs/filter", json={"sort": "START_TIME_DESC"}).json()
    assert runs[0]["state_type"] == "FAILED"


def test_flow_runs_without_a_server_and_skips_what_is_done(
    project: Path, tmp_path: Path, run: Run, wait_until
) -> None:
    printed = run("python", "-m", "flows.train_ral", cwd=project, PREFECT_HOME=str(tmp_path)).stdout
    for stage in STAGES:
        assert f"Stage '{stage}'" in printed or f"Running stage '{stage}'" in printed
    assert "Completed" in printed
    wait_until(lambda: not stage_processes(project), 10)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_ended_flow_leaves_no_process(
    project: Path, tmp_path: Path, environment: dict[str, str], wait_until, how: signal.Signals
) -> None:
    params = (project / "params.yaml").read_text()
    set_params(project, {"train": {"epochs": 5000}})
    flow = subprocess.Popen(
        [sys.executable, "-m", "flows.train_ral"], cwd=project, env=environment | {"PREFECT_HOME": str(tmp_path)},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        wait_until(lambda: any("ral.training" in line for line in stage_processes(project)), 120)
        if how == signal.SIGINT:  # Ctrl-C reaches the whole group, Prefect's temporary server included
            os.killpg(flow.pid, how)
        else:
            flow.send_signal(how)
        flow.wait(40)
        wait_until(lambda: not stage_processes(project), 10)
    finally:
        (project / "params.yaml").write_text(params)
