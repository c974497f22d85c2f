"""The batch script, run by a fake SLURM."""

import json
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from _pytest.monkeypatch import MonkeyPatch

from ral.config.environment import SlurmConfig, TrainingTarget
from ral.errors import UserError
from ral.launch import dry_run

TARGET = TrainingTarget(
    launcher="slurm",
    grace=3600.0,
    slurm=SlurmConfig(
        nodes=3, tasks_per_node=2, cpus_per_task=4, partition="a b;c", account="acc", time="01:00:00",
        gpus_per_node=2, signal_seconds=3690, lines=["--constraint=a100"],
    ),
)  # fmt: skip


@pytest.fixture
def cluster(tmp_path: Path, job, monkeypatch: MonkeyPatch) -> Path:
    """State folder of the fake SLURM, whose commands come first on PATH."""
    state, programs = tmp_path / "slurm", tmp_path / "bin"
    state.mkdir()
    programs.mkdir()
    for name in ("sbatch", "srun", "scontrol", "scancel"):
        words = [sys.executable, str(Path(__file__).with_name("slurm.py")), name]
        (programs / name).write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
        (programs / name).chmod(0o755)
    path = f"{programs}:{job.environment['PATH']}"
    job.environment |= {"PATH": path, "SLURM_STANDIN": str(state)}
    monkeypatch.setenv("PATH", path)
    monkeypatch.setenv("SLURM_STANDIN", str(state))
    return state


def test_tasks_meet_by_slurms_variables(job, cluster: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert job.launch("ok", TARGET) is None
    ranks = job.ranks()
    assert [(rank["RANK"], rank["LOCAL_RANK"]) for rank in ranks] == [(str(r), str(r % 2)) for r in range(6)]
    assert {(rank["WORLD_SIZE"], rank["MASTER_ADDR"], rank["MASTER_PORT"]) for rank in ranks} == {
        ("6", "localhost", "24711")
    }
    shown = capfd.readouterr().err
    assert all(shown.count(f"rank {rank} speaks") == 1 for rank in range(6))
    given = json.loads((cluster / "job.json").read_text())["options"]
    wanted = {
        "nodes": "3", "ntasks-per-node": "2", "gpus-per-node": "2", "cpus-per-task": "4", "partition": "a b;c",
        "account": "acc", "time": "01:00:00", "signal": "TERM@3690", "constraint": "a100",
    }  # fmt: skip
    assert wanted.items() <= given.items()
    assert not job.remaining()


@pytest.mark.parametrize(
    ("mode", "how", "kind", "retry", "words"),
    [
        ("ok", "refuse", "queue", True, ["rejected the job", "invalid partition", "train.sbatch"]),
        ("kill:4", "", "lost_process", True, ["process 4 of 6", "SIGKILL"]),
        ("exit:0:3", "", "lost_process", True, ["process 0 of 6", "exited with code 3"]),
        ("say:5", "", "memory", False, ["set train.micro_batch"]),
        ("hang", "timeout", "queue", True, ["terminated job 4711", "Rerun the same command"]),
        ("exit:2:3", "node_fail", "queue", True, ["NODE_FAIL"]),
    ],
)
def test_failures_are_told_by_their_cause(
    job, cluster: Path, mode: str, how: str, kind: str, retry: bool, words: list[str]
) -> None:
    (cluster / "how").write_text(how)
    error = job.launch(mode, TARGET)
    assert error is not None
    assert (error.kind, error.retry) == (kind, retry), str(error)
    assert all(word in str(error) for word in words), str(error)
    assert how != "timeout" or len(list(job.folder.glob("saved-*"))) == 6
    assert not job.remaining()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_the_job_ends_with_its_launcher(
    job, cluster: Path, wait_until: Callable, how: signal.Signals
) -> None:
    launcher = job.start("hang", TARGET)
    wait_until(lambda: len(job.ranks()) == 6)
    launcher.send_signal(how)
    launcher.wait()
    wait_until(lambda: not job.remaining())
    assert json.loads((cluster / "job.json").read_text())["state"] in ("CANCELLED", "FAILED")
    assert len(list(job.folder.glob("saved-*"))) == 6


@pytest.mark.parametrize("mode", ["slow", "slow:0"])
def test_a_cancelled_run_may_save_for_longer_than_the_kill_wait_of_the_cluster(
    job, cluster: Path, wait_until: Callable, mode: str
) -> None:
    """Also if the other ranks end before rank 0, which writes: srun kills all tasks when one fails."""
    (cluster / "kill_wait").write_text("0.5")
    launcher = job.start(mode, TARGET)
    wait_until(lambda: len(job.ranks()) == 6)
    launcher.terminate()
    launcher.wait()
    wait_until(lambda: not job.remaining())
    assert len(list(job.folder.glob("saved-*"))) == 6


def test_a_pending_job_is_cancelled_at_once(job, cluster: Path, wait_until: Callable) -> None:
    (cluster / "how").write_text("pending")
    launcher = job.start("ok", TARGET)
    wait_until((cluster / "job.json").exists)
    launcher.terminate()
    launcher.wait()
    assert json.loads((cluster / "job.json").read_text())["state"] == "CANCELLED"
    assert not job.ranks()


@pytest.mark.parametrize(
    ("slurm", "cpus", "grace"),
    [
        ({}, None, 6),
        ({"partition": "gpu"}, None, 6),
        ({"gpus_per_node": 4, "tasks_per_node": 4}, 8, 60),
        ({"lines": ["--gpus-per-task=1"]}, 8, 60),
        ({"lines": ["--gres=gpu:a100:4"]}, 8, 60),
        ({"lines": ["--gres=shard:1", "--constraint=gpu"]}, None, 6),
        ({"gpus_per_node": 1, "cpus_per_task": 2}, 2, 60),
    ],
)
def test_with_gpus_a_process_gets_more_cores_and_time_to_save(
    job, slurm: dict, cpus: int | None, grace: int
) -> None:
    target = TrainingTarget(launcher="slurm", slurm=SlurmConfig.model_validate(slurm))
    shown = dry_run(job.specify("ok"), target, job.folder)
    assert (f"#SBATCH --cpus-per-task={cpus}\n" in shown) == (cpus is not None)
    assert shown.count("cpus-per-task") == (0 if cpus is None else 2)  # for sbatch and for srun
    assert f"ral.launch.ranks slurm {grace}.0 " in shown
    # SLURM may signal up to a minute early, never late.
    assert f"#SBATCH --signal=TERM@{grace + 60}\n" in shown


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"grace": 300.0, "slurm": SlurmConfig(signal_seconds=120)},
            r"signal_seconds \(120\).*grace \(300\)",
        ),
        ({"slurm": SlurmConfig(tasks_per_node=8, gpus_per_node=4)}, "8 tasks_per_node, but 4 gpus_per_node"),
    ],
)
def test_what_does_not_fit_together_is_refused(job, changes: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        dry_run(job.specify("ok"), TrainingTarget(launcher="slurm").model_copy(update=changes), job.folder)


@pytest.mark.parametrize(
    "bad",
    [{"lines": ["rm -rf /"]}, {"lines": ["--x\nrm -rf /"]}, {"partition": "a\nrm"}],
)
def test_no_option_becomes_a_command(job, bad: dict) -> None:
    target = TARGET.model_copy(update={"slurm": TARGET.slurm.model_copy(update=bad)})
    with pytest.raises(UserError, match=r"training\.slurm"):
        dry_run(job.specify("ok"), target, job.folder)


def test_without_slurm_it_says_so(job, tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    error = job.launch("ok", TARGET)
    assert error is not None
    assert "sbatch not found" in str(error)
