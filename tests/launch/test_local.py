"""Ranks on this machine: how they end, error messages, and that no process remains."""

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from _pytest.monkeypatch import MonkeyPatch

from ral.config.environment import TrainingTarget
from ral.launch import base, local


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


def test_without_a_device_torch_is_not_asked(monkeypatch: MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert local.gpus() == 0
