"""A simulated week of nights: a real Prefect server and worker, a real DVC and git, data that grows and goes wrong.

Each night's end is asserted: the run's state, the champion, the ledger, the lock file, no process and no stray file.
"""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pandas as pd
import psutil
import pytest
from nights import Clinic
from servers import Daemon, Postgres, free_port

from flows.workspace import git

# Training that learns something; the parameters of the first night hardly do.
BETTER = {"train__epochs": 12, "train__learning_rate": 3e-3}


@pytest.fixture(scope="module")
def clinic(
    tmp_path_factory: pytest.TempPathFactory,
    environment: dict[str, str],
    run: Callable[..., subprocess.CompletedProcess[str]],
    wait_until: Callable[..., None],
) -> Iterator[Clinic]:
    made = Clinic(tmp_path_factory.mktemp("clinic"), environment, run, wait_until)
    try:
        made.open()
        yield made
    finally:
        made.close()


def decisions(clinic: Clinic) -> list[str]:
    return [line["decision"] for line in clinic.ledger() if line["what"] == "decision"]


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_a_week(clinic: Clinic, tmp_path: Path) -> None:
    # Monday: the first model meets the floors of a first model and is the champion.
    clinic.hospital.deliver(0.7)
    ended = clinic.night(**BETTER | {"train__epochs": 3})
    assert (ended["type"], ended["name"]) == ("COMPLETED", "Promote"), ended
    first = clinic.champion()
    assert first == "v0.1.0"
    assert decisions(clinic) == ["PROMOTE"]
    lock = git(clinic.state / "registry.git", "show", "nightly:dvc.lock")
    assert str(clinic.hospital.folder) not in lock
    before = predicted(clinic, tmp_path / "first.parquet")
    clinic.tidy()

    # Tuesday: nothing has come. The run stops early and says so; nothing is recorded.
    ended = clinic.night(**BETTER | {"train__epochs": 3})
    assert (ended["type"], ended["name"]) == ("COMPLETED", "NoChanges"), ended
    assert decisions(clinic) == ["PROMOTE"]
    assert git(clinic.state / "registry.git", "show", "nightly:dvc.lock") == lock
    clinic.tidy()

    # Wednesday: a bad delivery. Validation refuses it and names the row; the champion stays.
    clinic.hospital.deliver(0.8, lambda row: [row[0], row[1].replace("Mass", "Mas"), *row[2:]])
    asked = clinic.start_night(**BETTER)
    ended = clinic.wait_for(asked)
    assert ended["type"] == "FAILED"
    assert "did you mean `mass`" in clinic.lines(asked).lower()
    assert '"passed": false' in clinic.server.artifacts()["validation"]["data"]
    assert clinic.champion() == first
    assert decisions(clinic) == ["PROMOTE"]
    clinic.tidy()

    # Thursday: the data is right and has grown; a worse challenger does not replace the champion.
    clinic.hospital.deliver(0.8)
    ended = clinic.night(train__epochs=1, train__learning_rate=1e-7)
    assert ended["name"] in ("Hold", "Reject"), ended
    assert decisions(clinic)[1:] in (["HOLD"], ["REJECT"])
    assert clinic.champion() == first
    patients_never_moved(clinic)
    clinic.tidy()

    # Friday: a better one does. Its bundle is whole, the former champion is archived.
    clinic.hospital.deliver(0.9)
    ended = clinic.night(**BETTER)
    assert ended["name"] == "Promote", ended
    second = clinic.champion()
    assert second == "v0.3.0"
    patients_never_moved(clinic)
    for name in (
        "report.html",
        "model_card.md",
        "metrics.json",
        "calibration.json",
        "decision.json",
        "bundle.json",
    ):
        assert (clinic.state / "releases" / second / name).is_file(), name
    assert git(clinic.upstream, "rev-parse", "nightly") == git(
        clinic.state / "registry.git", "rev-parse", "nightly"
    )
    assert f"ral@{second}" in git(clinic.upstream, "tag")
    listed = clinic.release("list")
    assert "champion" in listed
    assert "archived" in listed
    assert predicted(clinic, tmp_path / "second.parquet") != before
    clinic.tidy()

    # Saturday: a drifted delivery: other ages. It is flagged, and held back.
    clinic.hospital.deliver(1.0, lambda row: [*row[:4], str(min(int(row[4]) + 6, 95)), *row[5:]])
    asked = clinic.start_night(**BETTER)
    ended = clinic.wait_for(asked)
    assert ended["name"] == "Hold", ended
    assert "drift" in clinic.server.artifacts()["decision"]["data"].lower()
    assert clinic.champion() == second
    clinic.tidy()

    # Sunday: back to the champion before; the restored model predicts the same bytes as then.
    clinic.release("rollback", "--reason", "a reader found the new one worse at night")
    assert clinic.champion() == first
    assert predicted(clinic, tmp_path / "again.parquet") == before
    kinds = [line["what"] for line in clinic.ledger()]
    assert kinds.count("decision") == 4
    assert kinds[-1] == "rollback"
    clinic.tidy()


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_a_cancelled_night_ends_and_the_next_goes_on(clinic: Clinic) -> None:
    clinic.hospital.deliver(0.7)
    champion = clinic.champion()
    asked = clinic.start_night(train__epochs=4000, train__seed=1)
    clinic.wait_for_process("ral.training")
    clinic.wait_until(lambda: "epoch   1" in clinic.lines(asked))
    clinic.prefect("flow-run", "cancel", asked)
    clinic.wait_until(lambda: clinic.state_of(asked)["type"] in ("CANCELLING", "CANCELLED"))
    clinic.wait_until(lambda: not clinic.processes())
    assert clinic.wait_for(asked)["type"] == "CANCELLED"
    clinic.tidy()
    again = clinic.start_night(train__epochs=4000, train__seed=1)
    clinic.wait_until(lambda: "Resuming from checkpoint at step" in clinic.lines(again))
    clinic.prefect("flow-run", "cancel", again)
    assert clinic.wait_for(again)["type"] == "CANCELLED"
    assert clinic.champion() == champion
    clinic.tidy()


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_two_nights_at_once_are_one_night(clinic: Clinic) -> None:
    clinic.hospital.deliver(0.7)
    before = len(decisions(clinic))
    first = clinic.start_night(**BETTER | {"train__seed": 2})
    clinic.wait_for_process("tasks.")
    second = clinic.start_night(**BETTER | {"train__seed": 2})
    assert clinic.wait_for(second)["type"] == "CANCELLED"
    assert clinic.wait_for(first)["type"] == "COMPLETED"
    assert len(decisions(clinic)) == before + 1
    clinic.tidy()


def in_training(clinic: Clinic, changes: dict) -> tuple[str, psutil.Process]:
    """Start a night and wait until it is well into training: its flow run, and the process of the run."""
    asked = clinic.start_night(**changes)
    training = clinic.wait_for_process("ral.training")
    clinic.wait_until(lambda: "epoch   2" in clinic.lines(asked))
    return asked, next(p for p in training.parents() if "prefect.engine" in " ".join(p.cmdline()))


@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("power", [True, False])
def test_a_crash_loses_nothing(clinic: Clinic, power: bool) -> None:
    """The worker is killed; without power its run is, too, and nobody can say goodbye."""
    clinic.hospital.deliver(0.7)
    before, champion = decisions(clinic), clinic.champion()
    changes = BETTER | {"train__epochs": 25, "train__seed": 3 + power}
    asked, run = in_training(clinic, changes)
    if not power:
        run.suspend()  # it must not react to what happens next
    clinic.worker.end(signal.SIGKILL, group=False)
    if not power:
        run.kill()
    clinic.wait_until(lambda: not clinic.processes())
    assert decisions(clinic) == before
    assert clinic.champion() == champion
    next_one = clinic.start_night(**changes)  # nobody is there to take it
    # The place of a run that could say nothing is held for some minutes more; then a late run is cancelled.
    clinic.wait_until(lambda: clinic.state_of(next_one)["name"] in ("Late",) + ("Cancelled",) * (not power))
    clinic.worker.start()
    ends = [clinic.wait_for(next_one)["type"]]
    while ends[-1] == "CANCELLED" and len(ends) < 30:
        time.sleep(20)
        next_one = clinic.start_night(**changes)
        ends.append(clinic.wait_for(next_one)["type"])
    assert ends[-1] == "COMPLETED", ends
    assert clinic.state_of(asked)["type"] == "CRASHED"
    if power:  # it could save when it was asked to end
        assert "Resuming from checkpoint at step" in clinic.lines(next_one)
    assert len(decisions(clinic)) == len(before) + 1
    clinic.tidy()


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_a_killed_server_loses_nothing(clinic: Clinic) -> None:
    clinic.hospital.deliver(0.7)
    before = len(decisions(clinic))
    changes = BETTER | {"train__epochs": 25, "train__seed": 5}
    asked, _ = in_training(clinic, changes)
    clinic.server.end(signal.SIGKILL)
    clinic.server.start_and_wait(clinic.wait_until)
    ended = clinic.wait_for(asked)
    if ended["type"] != "COMPLETED":  # a run that could not reach the server may end
        assert clinic.night(**changes)["type"] == "COMPLETED"
    assert len(decisions(clinic)) == before + 1
    clinic.tidy()


@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("answer", [True, False])
def test_a_person_is_asked(clinic: Clinic, answer: bool) -> None:
    clinic.hospital.deliver(0.7)
    forget_releases(clinic)
    asked = clinic.start_night(
        **BETTER | {"train__epochs": 2, "gate__approval": True, "train__seed": 6 + answer}
    )
    assert clinic.wait_for(asked, "PAUSED", "FAILED", "CRASHED")["name"] == "Suspended"
    assert clinic.champion() is None
    clinic.wait_until(lambda: not clinic.processes())  # nobody waits on the machine
    (question,) = (
        item["value"]
        for item in clinic.server.ask(f"flow_runs/{asked}/input", prefix="suspended", limit=10)
        if "description" in item["key"]
    )
    assert "PROMOTE" in question
    assert "report.html" in question
    resume = {"run_input": {"approve": answer, "name": "Dr. Example"}}
    assert (
        httpx.post(f"{clinic.server.url}/flow_runs/{asked}/resume", json=resume, timeout=None).json()[
            "status"
        ]
        == "ACCEPT"
    )
    ended = clinic.wait_for(asked, "COMPLETED", "FAILED", "CRASHED")
    assert ended["name"] == ("Promote" if answer else "Hold"), ended
    assert clinic.champion() == ("v0.1.0" if answer else None)
    decision = json.loads((clinic.state / "releases/v0.1.0/decision.json").read_text())
    assert "Dr. Example" in decision["rules"][-1]["sentence"]
    clinic.tidy()


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_a_dask_scheduler_that_dies_is_waited_for(
    tmp_path: Path,
    environment: dict[str, str],
    run: Callable[..., subprocess.CompletedProcess[str]],
    wait_until: Callable[..., None],
) -> None:
    port = free_port()
    address = f"tcp://127.0.0.1:{port}"
    target = {"RAL_DASK_TARGET": "address", "RAL_DASK_ADDRESS": address, "RAL_DASK_WAIT": "15"}
    made = Clinic(tmp_path, environment, run, wait_until, {"preprocess": {"size": 64}}, **target)
    made.hospital.deliver(1.0)
    python = (sys.executable, "-m")
    scheduler = Daemon(
        (*python, "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"),
        tmp_path, made.env, tmp_path / "scheduler.log",
    )  # fmt: skip
    hands = Daemon(
        (*python, "distributed.cli.dask_worker", address, "--nthreads", "1", "--no-dashboard", "--no-nanny"),
        made.project, made.env, tmp_path / "dask_worker.log",
    )  # fmt: skip
    try:
        made.open()
        scheduler.start()
        hands.start()
        asked = made.start_night(train__epochs=1)
        made.wait_for_process("tasks.preprocess")
        scheduler.end(signal.SIGKILL)
        wait_until(lambda: "Stage preprocess failed" in made.lines(asked))
        hands.end()  # without its scheduler it ends by itself
        scheduler.start()
        hands.start()
        assert made.wait_for(asked)["type"] == "COMPLETED"
        assert re.search(r"Retry \d+/\d+ will start", made.lines(asked))
        made.tidy()
    finally:
        hands.end()
        scheduler.end()
        made.close()


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_nights_on_postgresql(
    tmp_path: Path,
    environment: dict[str, str],
    run: Callable[..., subprocess.CompletedProcess[str]],
    wait_until: Callable[..., None],
) -> None:
    base = Postgres(environment)
    made = None
    try:
        base.start()
        made = Clinic(tmp_path, environment, run, wait_until, database=base.url)
        made.hospital.deliver(0.5)
        made.open()
        assert made.night(**BETTER | {"train__epochs": 1})["name"] == "Promote"
        assert made.night(**BETTER | {"train__epochs": 1})["name"] == "NoChanges"
        assert not list((tmp_path / "prefect").glob("*.db")), "the server has used SQLite"
        made.tidy()
    finally:
        if made:
            made.close()
        base.remove()


def forget_releases(clinic: Clinic) -> None:
    """Begin again with the first model, which the gate lets pass whatever the draw of the weights."""
    (clinic.state / "champion").unlink(missing_ok=True)
    (clinic.state / "ledger.jsonl").unlink(missing_ok=True)
    for folder in (clinic.state / "registry.git", clinic.state / "releases", clinic.upstream):
        shutil.rmtree(folder, ignore_errors=True)
    git(clinic.project, "init", "-q", "--bare", str(clinic.upstream))


def predicted(clinic: Clinic, out: Path) -> str:
    """The champion's logits on the first prepared data, as text."""
    kept = clinic.state / "prepared_for_tests"
    if not kept.exists():
        subprocess.run(["cp", "-rL", clinic.state / "workspaces/nightly/data/prepared", kept], check=True)
    clinic.release("predict", str(kept), "--out", str(out))
    return pd.read_parquet(out).to_csv(index=False)


def patients_never_moved(clinic: Clinic) -> None:
    """Every patient is in one split, the same in all releases."""
    seen: dict[str, str] = {}
    for folder in sorted((clinic.state / "releases").iterdir()):
        table = pd.read_parquet(folder / "split.parquet")
        assert not table["patient_id"].duplicated().any()
        for patient, split in zip(table["patient_id"], table["split"], strict=True):
            assert seen.setdefault(patient, split) == split, patient


@pytest.mark.long
def test_first_night_without_a_server(
    tmp_path: Path,
    environment: dict[str, str],
    run: Callable[..., subprocess.CompletedProcess[str]],
    wait_until,
) -> None:
    """The flow by hand: a first model, then nothing new; the caller's checkout is not touched."""
    clinic = Clinic(tmp_path, environment, run, wait_until, images=500)
    clinic.hospital.deliver(1.0)
    env = clinic.env | {"PREFECT_API_URL": "", "PREFECT_HOME": str(tmp_path / "home")}
    printed = run("python", "-m", "flows.nightly", cwd=clinic.project, code=None, **env).stdout
    taken = [line for line in clinic.ledger() if line["what"] == "decision"]
    assert len(taken) == 1, printed
    (decision,) = taken
    assert decision["decision"] in ("PROMOTE", "HOLD", "REJECT")
    bundle = clinic.state / "releases/v0.1.0"
    assert json.loads((bundle / "decision.json").read_text())["decision"] == decision["decision"]
    again = run("python", "-m", "flows.nightly", cwd=clinic.project, **env).stdout
    assert "No changes since the last run" in again
    assert len(clinic.ledger()) == (2 if decision["decision"] == "PROMOTE" else 1)
    clinic.tidy()
