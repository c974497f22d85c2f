"""The flow without a server, and its deployment on a real server, taken up by a real worker."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from conftest import processes_in, set_params
from servers import PREFECT, Server, worker

from flows.settings import STAGES, address

Run = Callable[..., subprocess.CompletedProcess[str]]
ALWAYS = "manifest"


@pytest.fixture(scope="module")
def project(chain_done: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of a project that ran with another seed: training and what follows is to be done."""
    folder = tmp_path_factory.mktemp("prefect") / "project"
    shutil.copytree(chain_done, folder, symlinks=True, ignore=shutil.ignore_patterns("runs"))
    set_params(folder, {"train": {"seed": 1}})
    return folder


@pytest.fixture(scope="module")
def server(
    project: Path, tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str], wait_until
) -> Iterator[Server]:
    served = Server(project, tmp_path_factory.mktemp("prefect_home"), environment)
    try:
        served.start_and_wait(wait_until)
        yield served
    finally:
        served.end()


@pytest.fixture(scope="module")
def deployed(project: Path, server: Server, run: Run) -> dict[str, str]:
    """The deployment train-ral/train-ral, for a worker; settings with which it is reached."""
    settings = server.settings | {"PWD": str(project)}
    run(*PREFECT, "work-pool", "create", "ral-process", "--type", "process", cwd=project, **settings)
    run(*PREFECT, "deploy", "-n", "train-ral", "--no-prompt", cwd=project, **settings)
    return settings


def stage_processes(folder: Path) -> list[str]:
    """Commands of the processes that work in a folder, but for this module's Prefect server."""
    return [command for command in processes_in(folder) if "prefect server start" not in command]


def test_deployment_is_run_by_a_worker(
    project: Path, server: Server, deployed: dict[str, str], tmp_path: Path, environment: dict[str, str], run: Run, wait_until,
) -> None:  # fmt: skip
    settings = deployed
    hands = worker(project, environment | settings, tmp_path / "worker.log")
    hands.start()
    try:
        watched = run(
            *PREFECT, "deployment", "run", "train-ral/train-ral", "--watch",
            cwd=project.parent, **settings,
        ).stdout  # fmt: skip
    finally:
        hands.end()
    assert "Completed" in watched, watched
    tasks = server.ask("task_runs", sort="EXPECTED_START_TIME_ASC")
    assert [task["name"].rsplit("-", 1)[0] for task in tasks] == list(STAGES)
    assert {task["state_type"] for task in tasks} == {"COMPLETED"}
    found = server.artifacts()
    assert "PHANTOM" in found["metrics"]["description"]
    assert '"macro"' in found["metrics"]["data"]
    assert "labels are in the vocabulary" in found["validation"]["data"]
    assert "| all findings (macro) | " in found["report"]["data"]
    (copy,) = project.glob("runs/*/report.html")
    assert f"xdg-open {copy}\n" in found["report"]["data"]
    assert copy.read_bytes() == (project / "reports/report.html").read_bytes()
    logs = [line["message"] for line in server.ask("logs", limit=200)]
    assert any("PHANTOM DATA, epoch   2 of 2: loss" in line for line in logs)
    assert run("dvc", "status", cwd=project).stdout.split() == [f"{address(ALWAYS)}:", "always", "changed"]
    wait_until(lambda: not stage_processes(project))


def test_refused_data_fails_the_run_and_shows_why(
    project: Path, server: Server, run: Run, phantom_copy: Path
) -> None:
    table = phantom_copy / "Data_Entry_2017.csv"
    table.write_text(table.read_text().replace("Infiltration", "Infltration"))
    params = (project / "params.yaml").read_text()
    set_params(project, {"data": {"root": str(phantom_copy)}})
    try:
        printed = run("python", "-m", "flows.train_ral", cwd=project, code=1, **server.settings).stdout
    finally:
        (project / "params.yaml").write_text(params)
    assert "Infltration" in printed
    assert "Stage validate failed" in printed
    checks = server.artifacts()["validation"]["data"]
    assert '"passed": false' in checks
    runs = server.ask("flow_runs", sort="START_TIME_DESC")
    assert runs[0]["state_type"] == "FAILED"


@pytest.mark.long
def test_flow_runs_without_a_server_and_skips_what_is_done(
    chain_done: Path, tmp_path: Path, run: Run, wait_until
) -> None:
    project = Path(shutil.copytree(chain_done, tmp_path / "project", symlinks=True))
    printed = run("python", "-m", "flows.train_ral", cwd=project, PREFECT_HOME=str(tmp_path / "home")).stdout
    assert re.findall("Running stage '(.*)'", printed) == [address(ALWAYS)]
    skipped = re.findall("Stage '(.*)' didn't change, skipping", printed)
    assert skipped == [stage for stage in STAGES if stage != ALWAYS]
    assert "Completed" in printed
    table = run("python", "-m", "ral.reporting.summary", cwd=project).stdout
    assert table.endswith("report: reports/report.html\n")
    assert table in printed.partition("Completed")[2]
    wait_until(lambda: not stage_processes(project))


@pytest.mark.parametrize(
    "how",
    [signal.SIGKILL, *(pytest.param(how, marks=pytest.mark.long) for how in (signal.SIGTERM, signal.SIGINT))],
)
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
        wait_until(lambda: any("ral.training" in line for line in stage_processes(project)))
        if how == signal.SIGINT:  # Ctrl-C reaches the whole group, Prefect's temporary server included
            os.killpg(flow.pid, how)
        else:
            flow.send_signal(how)
        flow.wait()
        wait_until(lambda: not stage_processes(project))
    finally:
        (project / "params.yaml").write_text(params)


@pytest.mark.parametrize("reached", ["terminal", "worker", "run"])
@pytest.mark.long
def test_a_worker_whose_terminal_hangs_up_leaves_nothing(
    project: Path, server: Server, deployed: dict[str, str], tmp_path: Path, environment: dict[str, str], run: Run, wait_until,
    reached: str,
) -> None:  # fmt: skip
    """SIGHUP reaches the worker and its run, or one of them: all ends, and what was trained is kept and said."""
    hands = worker(project, environment | deployed, tmp_path / "worker.log")
    params = (project / "params.yaml").read_text()
    set_params(project, {"train": {"epochs": 5000, "seed": ["terminal", "worker", "run"].index(reached)}})
    known = {item["id"] for item in server.ask("flow_runs")}

    def state() -> dict:
        (found,) = server.ask("flow_runs", flow_runs={"id": {"any_": [asked]}})
        return dict(found["state"])

    def lines() -> str:
        logs = {"flow_run_id": {"any_": [asked]}}
        found = server.ask("logs", logs=logs, limit=200, sort="TIMESTAMP_DESC")
        return "\n".join(line["message"] for line in found)

    hands.start()
    try:
        run(*PREFECT, "deployment", "run", "train-ral/train-ral", cwd=project, **deployed)
        (asked,) = {item["id"] for item in server.ask("flow_runs")} - known
        wait_until(lambda: "epoch   2" in lines(), every=1)
        (training,) = (
            process
            for process in psutil.process_iter(["cmdline", "cwd"])
            if process.info["cwd"] == str(project) and "ral.training" in (process.info["cmdline"] or [])
        )
        flow = next(p for p in training.parents() if "prefect.engine" in " ".join(p.cmdline()))
        if reached == "run":
            flow.send_signal(signal.SIGHUP)
        else:
            hands.end(signal.SIGHUP, group=reached == "terminal")
        wait_until(lambda: not any("ral.training" in line for line in stage_processes(project)))
        wait_until(lambda: state()["type"] in ("CRASHED", "CANCELLED"), every=1)
        wait_until(lambda: "A checkpoint was saved after" in lines(), every=1)
        if reached == "run":
            hands.end()
        wait_until(lambda: not stage_processes(project))
    finally:
        hands.end()
        (project / "params.yaml").write_text(params)
