"""Ranks on this machine: how they end, error messages, and that no process remains."""

import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from _pytest.monkeypatch import MonkeyPatch
from trainings import TRAIN, params

import tasks.train
from ral.config.environment import TrainingTarget, load_environment
from ral.config.train import TrainConfig
from ral.errors import UserError
from ral.launch import base, local
from ral.launch.gpus import count_gpus, has_gpu
from ral.training.engine import accumulation


def two(**changes) -> TrainingTarget:
    return TrainingTarget(processes=2).model_copy(update=changes)


def test_each_process_knows_its_place(job) -> None:
    assert job.launch("ok", two(processes=3)) is None
    ranks = job.ranks()
    assert [rank["RANK"] for rank in ranks] == [rank["LOCAL_RANK"] for rank in ranks] == ["0", "1", "2"]
    assert {rank["WORLD_SIZE"] for rank in ranks} == {"3"}
    assert len({(rank["MASTER_ADDR"], rank["MASTER_PORT"]) for rank in ranks}) == 1
    assert not job.remaining()
    written = (job.folder / "launch.sh").read_text()
    assert all(f"RANK={rank['RANK']} " in written for rank in ranks)
    assert ranks[0]["MASTER_PORT"] in written


@pytest.mark.parametrize(
    ("mode", "kind", "retry", "words"),
    [
        (
            "kill:1",
            "lost_process",
            True,
            ["process 1 of 2", socket.gethostname(), "SIGKILL", "out of memory"],
        ),
        ("break:1", "lost_process", True, ["process 1 of 2", "SIGKILL"]),
        ("exit:0:3", "lost_process", True, ["process 0 of 2", "exited with code 3"]),
        ("exit:0:69", "lost_process", True, ["process 0 of 2", "lost its connection"]),
        ("exit:1:143", "interrupted", True, ["process 1 of 2", "was terminated"]),
        ("say:1", "memory", False, ["set train.micro_batch"]),
    ],
)
def test_one_dead_process_ends_the_others_with_its_cause(
    job, mode: str, kind: str, retry: bool, words: list[str]
) -> None:
    error = job.launch(mode, two(grace=3600.0))  # a failure does not wait for the grace
    assert error is not None
    assert (error.kind, error.retry) == (kind, retry)
    assert all(word in str(error) for word in words)
    assert not job.remaining()


def test_a_kill_is_a_better_word_than_the_broken_exchange_it_caused(job) -> None:
    failure = job.folder / "rank_failure.json"
    job.specify("ok")
    base.write_failure(failure, "Connection reset by peer", "bug", False)
    base.write_failure(failure, "second", "bug", False)
    assert str(base.read_failure(failure)) == "Connection reset by peer"
    base.write_failure(failure, "signal 9", "lost_process", True, replace=True)
    assert str(base.read_failure(failure)) == "signal 9"
    assert [path.name for path in job.folder.glob("*rank_failure*")] == ["rank_failure.json"]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_processes_asked_to_end_may_save(job, wait_until: Callable, how: signal.Signals) -> None:
    launcher = job.start("slow", two(grace=3600.0))
    wait_until(lambda: len(job.ranks()) == 2)
    launcher.send_signal(how)
    code = launcher.wait()
    assert code == (-signal.SIGINT if how == signal.SIGINT else 128 + how)
    assert {path.name for path in job.folder.glob("saved-*")} == {"saved-0", "saved-1"}
    assert not job.remaining()


def test_processes_that_do_not_leave_are_killed_after_the_grace(job, wait_until: Callable) -> None:
    launcher = job.start("stubborn", two(grace=1.0))
    wait_until(lambda: len(job.ranks()) == 2)
    launcher.terminate()
    launcher.wait()
    assert not job.remaining()


def test_a_killed_launcher_leaves_nothing(job, wait_until: Callable) -> None:
    launcher = job.start("stubborn", two())
    wait_until(lambda: len(job.ranks()) == 2)
    launcher.kill()
    launcher.wait()
    wait_until(lambda: not job.remaining())


def test_without_loopback_training_ends_at_once(job) -> None:
    """In a network namespace of its own, where even 127.0.0.1 is down."""
    if subprocess.run(["unshare", "--net", "true"], capture_output=True).returncode:
        pytest.skip("no network namespace can be made here")
    job.specify("ok")
    (job.folder / "target.json").write_text(two().model_dump_json())
    command = [sys.executable, str(Path(__file__).with_name("launcher.py")), str(job.folder)]
    done = subprocess.run(
        ["unshare", "--net", *command, str(job.folder / "target.json")],
        env=job.environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "127.0.0.1 cannot be reached" in json.loads(done.stdout)["message"]
    assert not job.ranks()


def test_word_of_an_earlier_try_is_forgotten(job) -> None:
    (job.folder / "rank_failure.json").write_text(
        json.dumps({"kind": "bug", "retry": False, "message": "old"})
    )
    assert job.launch("ok", two()) is None


def test_the_time_to_save_depends_on_the_gpu(monkeypatch: MonkeyPatch) -> None:
    for gpu, seconds in ((False, 6), (True, 60)):
        monkeypatch.setattr(base, "has_gpu", lambda gpu=gpu: gpu)
        assert base.grace_seconds(TrainingTarget()) == seconds
        assert base.grace_seconds(TrainingTarget(launcher="hostfile")) == seconds
        assert base.grace_seconds(TrainingTarget(grace=5.0)) == 5


@pytest.mark.parametrize(
    ("batch", "micro", "processes"),
    # with 1, 2, … 8 GPUs
    [
        (128, None, [1, 2, 2, 4, 4, 4, 4, 8]),
        (128, 32, [1, 2, 2, 4, 4, 4, 4, 4]),
        (90, None, [1, 2, 3, 3, 5, 6, 6, 6]),
    ],
)
def test_as_many_gpus_are_used_as_divide_the_batch(
    batch: int,
    micro: int | None,
    processes: list[int],
    monkeypatch: MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    train = TrainConfig.model_validate(TRAIN | {"batch_size": batch, "micro_batch": micro})
    for gpus, expected in enumerate(processes, 1):
        caplog.clear()
        monkeypatch.setattr(local, "count_gpus", lambda gpus=gpus: gpus)
        chosen = local.choose_processes(TrainingTarget(), train).processes
        assert chosen == expected
        accumulation(train, chosen)  # raises if the batch cannot be split
        assert (f"uses {expected} of {gpus} GPUs" in caplog.text) == (expected < gpus)
        if expected < gpus:
            better = int(re.findall(r"such as (\d+)", caplog.text)[0])
            changed = train.model_copy(update={"batch_size": better})
            assert local.choose_processes(TrainingTarget(), changed).processes == gpus


def test_one_process_without_a_gpu_and_no_more_than_one_per_gpu(monkeypatch: MonkeyPatch) -> None:
    train = TrainConfig.model_validate(TRAIN)
    monkeypatch.setattr(local, "count_gpus", lambda: 0)
    assert local.choose_processes(TrainingTarget(), train).processes == 1
    assert local.choose_processes(two(), train).processes == 2
    assert local.choose_processes(TrainingTarget(launcher="slurm"), train).processes is None
    monkeypatch.setattr(local, "count_gpus", lambda: 1)
    with pytest.raises(UserError, match=r"training.processes is 2, but this machine has 1 usable GPU"):
        local.choose_processes(two(), train)


def test_a_dry_run_shows_the_processes_that_a_run_would_start(
    tmp_path: Path, monkeypatch: MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(local, "count_gpus", lambda: 3)
    environment = load_environment(tmp_path, {"RAL_STATE_DIR": str(tmp_path)})
    tasks.train.show(params(batch_size=128), environment)
    assert capsys.readouterr().out.count("-m ral.training") == 2


@pytest.mark.parametrize("name", ["dev/nvidia0", "proc/driver/nvidia/version", "dev/kfd", "dev/dxg"])
def test_a_gpu_is_known_by_its_files(tmp_path: Path, monkeypatch: MonkeyPatch, name: str) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/nvidiactl").touch()  # of the driver, not of a GPU
    assert not has_gpu(root=tmp_path)
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).touch()
    assert has_gpu(root=tmp_path)
    for hidden in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert not has_gpu(root=tmp_path)
        assert count_gpus() == 0
