"""Two machines, simulated on this one, with DeepSpeed's real launcher and without ssh."""

import re
import shlex
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from ral.config.environment import TrainingTarget
from ral.errors import UserError
from ral.launch import dry_run


@pytest.fixture
def target(tmp_path: Path) -> TrainingTarget:
    path = tmp_path / "hosts"
    path.write_text("# two names of one machine\n127.0.0.1 slots=1\nlocalhost slots=2\n")
    return TrainingTarget(launcher="hostfile", hostfile=path, ssh=False, grace=3.0)


def start_both(job, mode: str, target: TrainingTarget, wait_until: Callable) -> list[subprocess.Popen]:
    """Machine 0 through the launcher, machine 1 manually, with the command in launch.sh."""
    first = job.start(mode, target)
    script = job.folder / "launch.sh"
    wait_until(lambda: script.exists() and script.read_text().count("\n") == 2)
    second = shlex.split(script.read_text().splitlines()[1])
    assert second[second.index("--node_rank") + 1] == "1"
    return [first, subprocess.Popen(second, env=job.environment, start_new_session=True)]


def test_two_machines_make_one_run(job, target: TrainingTarget, wait_until: Callable) -> None:
    both = start_both(job, "ok", target, wait_until)
    assert [process.wait() for process in both] == [0, 0]
    ranks = job.ranks()
    assert [rank["RANK"] for rank in ranks] == ["0", "1", "2"]
    # DeepSpeed derives local ranks from the global rank: distinct on a machine, not in order.
    assert ranks[0]["LOCAL_RANK"] == "0"
    assert {rank["LOCAL_RANK"] for rank in ranks[1:]} == {"0", "1"}
    assert {rank["WORLD_SIZE"] for rank in ranks} == {"3"}
    assert len({(rank["MASTER_ADDR"], rank["MASTER_PORT"]) for rank in ranks}) == 1
    assert ranks[0]["MASTER_PORT"] != "29500"
    assert not job.remaining()


@pytest.mark.parametrize("dead", [pytest.param("0", marks=pytest.mark.long), "2"])
def test_a_dead_process_ends_both_machines(
    job, target: TrainingTarget, wait_until: Callable, dead: str
) -> None:
    first, second = start_both(job, f"kill:{dead}", target, wait_until)
    wait_until(lambda: len(job.ranks()) == 3)
    assert first.wait() == 1
    second.wait()
    assert f"Training process {dead} of 3" in first.stdout.read()
    wait_until(lambda: not job.remaining())


@pytest.mark.parametrize("how", [signal.SIGTERM, pytest.param(signal.SIGKILL, marks=pytest.mark.long)])
def test_an_ended_launcher_ends_both_machines(
    job, target: TrainingTarget, wait_until: Callable, how: signal.Signals
) -> None:
    first, _ = start_both(job, "hang", target, wait_until)
    wait_until(lambda: len(job.ranks()) == 3)
    first.send_signal(how)
    first.wait()
    wait_until(lambda: not job.remaining())


@pytest.mark.long
def test_both_machines_may_save_when_the_launcher_is_ended(
    job, target: TrainingTarget, wait_until: Callable
) -> None:
    first, second = start_both(job, "slow", target.model_copy(update={"grace": 3600.0}), wait_until)
    wait_until(lambda: len(job.ranks()) == 3)
    first.terminate()
    first.wait()
    second.wait()
    wait_until(lambda: not job.remaining())
    assert len(list(job.folder.glob("saved-*"))) == 3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a slots=1\n", "lists 1 machine"),
        ("a slots=1\na slots=2\n", "line 2.*repeats a machine"),
        ("a slots=0\nb slots=1\n", "line 1.*is not `NAME slots=N`"),
        ("-oProxyCommand=evil slots=1\nb slots=1\n", "line 1.*is not"),
        ("r\udcf6ntgen slots=1\n", "not UTF-8 text"),
    ],
)
def test_a_bad_hostfile_is_refused(job, target: TrainingTarget, text: str, words: str) -> None:
    assert target.hostfile is not None
    target.hostfile.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=words):
        dry_run(job.specify("ok"), target, job.folder)


def test_with_ssh_one_command_starts_all(job, target: TrainingTarget) -> None:
    shown = dry_run(job.specify("ok"), target.model_copy(update={"ssh": True}), job.folder)
    assert len(re.findall("deepspeed.launcher.runner", shown)) == 1
    assert "--launcher pdsh" in shown
    with pytest.raises(UserError, match="paths may contain only letters"):
        dry_run(job.folder / "a;b.json", target.model_copy(update={"ssh": True}), job.folder)
