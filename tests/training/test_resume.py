"""Killed at any time and rerun, training resumes and ends with the same bytes as an uninterrupted run."""

import fcntl
import json
import os
import random
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from conftest import processes_in
from forks import forks
from trainings import BATCH_NORM, SEPARABLE, outputs, params, steps, train, write_params

from ral.config.losses import LossConfig
from ral.config.train import TrainParams

# Two phases, EMA, batch statistics and a loss that learns: everything that a checkpoint has to hold.
WHOLE_TRAINING: dict[str, Any] = {
    "model": BATCH_NORM, "loss": LossConfig(name="ral", adjust="adaptive"),
    "classifier": {"epochs": 1, "learning_rate": 1e-2}, "epochs": 3,
}  # fmt: skip
WHOLE = params(**WHOLE_TRAINING)
# All steps of it: 247 images in batches of 32, three epochs and one.
STEPS = 4 * 8


class Training:
    """`python -m tasks.train` in a folder of its own, again and again.

    Args:
        folder: a new folder.
        prepared: the images.
        params: the parameters.
        environment: the fixture of this name.
        fresh: in interpreters of their own and not in forks, which have other modules loaded: no checkpoint of the one is
            one of the other.
    """

    def __init__(
        self,
        folder: Path,
        prepared: Path,
        params: TrainParams,
        environment: dict[str, str],
        fresh: bool = False,
    ) -> None:
        folder.mkdir()
        self.command = (sys.executable, "-m", "tasks.train") if fresh else forks().command("tasks.train")
        self.folder, self.prepared, self.environment = folder, prepared, environment
        write_params(folder, params)

    def start(
        self,
        processes: int = 1,
        run_id: str = "run",
        out: str = "out",
        minutes: str = "0",
        terminal: int | None = None,
    ) -> subprocess.Popen:
        """Start it; `terminal` is the child end of a pseudo-terminal, its output and controlling terminal."""
        settings = {
            "RAL_TRAINING_PROCESSES": str(processes), "RAL_TRAINING_CHECKPOINT_MINUTES": minutes, "RAL_RUN_ID": run_id,
            "RAL_TRAINING_GRACE": "600",  # a busy machine takes long to save
            "RAL_STATE_DIR": str(self.folder / "state"), "PYTHONPATH": str(Path(__file__).parents[2]),
        }  # fmt: skip
        log = (self.folder / "log.txt").open("a")
        return subprocess.Popen(
            [*self.command, "--prepared", str(self.prepared), "--out", out],
            cwd=self.folder, env=self.environment | settings, stdout=terminal or log, stderr=terminal or log,
            start_new_session=terminal is not None,
            preexec_fn=None if terminal is None else lambda: fcntl.ioctl(1, termios.TIOCSCTTY, 0),
        )  # fmt: skip

    def finish(self, processes: int = 1, run_id: str = "run") -> Path:
        """Run to the end; only the outputs may remain."""
        code = self.start(processes, run_id).wait()
        assert code == 0, self.log()
        self.nothing_runs()
        assert not list((self.folder / "state").rglob("step-*")), (
            "checkpoints are removed when training succeeds"
        )
        assert not list(self.folder.glob(".*.draft"))
        return self.folder / "out"

    def steps_done(self) -> int:
        """Optimizer steps of the newest checkpoint."""
        names = sorted(path.name for path in (self.folder / "state").rglob("step-*"))
        return int(names[-1].removeprefix("step-")) if names else 0

    def log(self) -> str:
        return (self.folder / "log.txt").read_text()

    def ranks(self) -> list[psutil.Process]:
        ranks = []
        for process in psutil.process_iter(["cmdline", "cwd"]):
            if process.info["cwd"] == str(self.folder) and "ral.training" in (process.info["cmdline"] or []):
                ranks.append(process)
        return ranks

    def nothing_runs(self) -> None:
        while processes_in(self.folder):
            time.sleep(0.1)


def kill(training: Training, launcher: subprocess.Popen, how: str, chance: random.Random) -> None:
    """Interrupt a training in one of several ways."""
    if how == "rank":
        ranks = training.ranks()
        if ranks:
            chance.choice(sorted(ranks, key=lambda process: process.pid)).kill()
    elif how == "launcher":
        launcher.kill()
    else:
        launcher.send_signal({"term": signal.SIGTERM, "ctrl-c": signal.SIGINT}[how])
    launcher.wait()
    training.nothing_runs()


@pytest.fixture(scope="module")
def reference(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, bytes]]:
    """Outputs of uninterrupted trainings by one and by two processes."""
    folder = tmp_path_factory.mktemp("reference")
    return {world: outputs(train(prepared, folder / str(world), world, **WHOLE_TRAINING)) for world in (1, 2)}


@pytest.mark.parametrize(
    ("how", "world"),
    [
        ("rank", 2),
        pytest.param("launcher", 1, marks=pytest.mark.long),
        pytest.param("term", 2, marks=pytest.mark.long),
    ],
)
def test_killed_once_it_ends_with_the_same_bytes(
    prepared: Path,
    tmp_path: Path,
    environment: dict[str, str],
    reference: dict,
    wait_until: Callable,
    how: str,
    world: int,
) -> None:
    training = Training(tmp_path / "run", prepared, WHOLE, environment, fresh=True)
    launcher = training.start(world)
    wait_until(lambda: training.steps_done() >= 11 or launcher.poll() is not None)
    kill(training, launcher, how, random.Random(0))
    assert launcher.returncode != 0, training.log()
    before = training.steps_done()
    assert before >= 11
    failure = training.folder / "runs/run/failure.json"
    if how == "launcher":  # it could not write one
        assert not failure.exists()
    else:
        told = json.loads(failure.read_text())
        assert (told["kind"], told["retry"]) == ({"rank": "lost_process", "term": "interrupted"}[how], True)
    out = training.finish(world)
    assert f"Resuming from checkpoint at step {before}:" in training.log()
    assert outputs(out) == reference[world]


@pytest.mark.long
def test_running_sums_of_the_loss_continue(
    prepared: Path, tmp_path: Path, environment: dict[str, str], wait_until: Callable
) -> None:
    with_sums = params(BATCH_NORM, loss="anyloss", micro_batch=16)
    expected = outputs(Training(tmp_path / "whole", prepared, with_sums, environment).finish())
    training = Training(tmp_path / "run", prepared, with_sums, environment)
    launcher = training.start()
    wait_until(lambda: training.steps_done() >= 5 or launcher.poll() is not None)
    kill(training, launcher, "launcher", random.Random(0))
    assert training.steps_done() >= 5
    out = training.finish()
    assert "Resuming from checkpoint" in training.log()
    assert outputs(out) == expected


def test_a_damaged_newest_checkpoint_is_passed_over(
    prepared: Path, tmp_path: Path, environment: dict[str, str], reference: dict, wait_until: Callable
) -> None:
    training = Training(tmp_path / "run", prepared, WHOLE, environment)
    launcher = training.start()
    wait_until(lambda: training.steps_done() >= 5 or launcher.poll() is not None)
    kill(training, launcher, "launcher", random.Random(0))
    newest = sorted((training.folder / "state").rglob("step-*"))[-1] / "tensors.safetensors"
    with newest.open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        last = stream.read(1)
        stream.seek(-1, os.SEEK_END)
        stream.write(bytes([last[0] ^ 1]))
    out = training.finish()
    assert "is corrupt (tensors.safetensors does not match its checksum); falling back" in training.log()
    assert outputs(out) == reference[1]


@pytest.mark.long
def test_a_terminal_that_hangs_up_costs_nothing(
    prepared: Path, tmp_path: Path, environment: dict[str, str], reference: dict, wait_until: Callable
) -> None:
    """The terminal is closed: SIGHUP reaches the launcher, and every write to the terminal fails from then on."""
    training = Training(tmp_path / "run", prepared, WHOLE, environment, fresh=True)
    near, far = os.openpty()
    launcher = training.start(minutes="10", terminal=far)
    os.close(far)
    shown = b""
    while b"epoch   2" not in shown:
        shown += os.read(near, 4096)
    os.close(near)
    assert launcher.wait() == 128 + signal.SIGHUP
    training.nothing_runs()
    steps = training.steps_done()
    assert steps >= 16, "a checkpoint was saved at the end"
    hint = f"A checkpoint was saved after {steps} steps: rerun the same command to resume."
    failure = json.loads((training.folder / "runs/run/failure.json").read_text())
    assert (failure["kind"], failure["retry"]) == ("interrupted", True)
    assert hint in failure["message"]
    record = json.loads((training.folder / "runs/run/run.json").read_text())["steps"]["train"]
    assert record["status"].startswith("failed")
    assert "finished" in record
    assert not list(training.folder.glob(".*.draft"))
    assert outputs(training.finish()) == reference[1]


@pytest.mark.parametrize("world", [1, pytest.param(2, marks=pytest.mark.long)])
def test_a_state_dir_that_is_full_is_told_and_not_tried_again(
    prepared: Path, tmp_path: Path, environment: dict[str, str], small_disk: Callable[[str], Path], world: int
) -> None:
    training = Training(tmp_path / "run", prepared, WHOLE, environment)
    disk = small_disk("256k")
    disk.chmod(0o700)
    (training.folder / "state").symlink_to(disk)
    assert training.start(world).wait() == 1
    training.nothing_runs()
    failure = json.loads((training.folder / "runs/run/failure.json").read_text())
    assert (failure["kind"], failure["retry"]) == ("disk", False)
    assert f"{training.folder}/state/training/" in failure["message"]
    assert "No space left on device. Free some space there" in training.log()
    assert "Traceback" not in training.log()
    assert not list(disk.rglob(".draft"))


# SIGHUP: the test of a terminal that hangs up has it, too.
@pytest.mark.parametrize(
    "how", [pytest.param(signal.SIGHUP, marks=pytest.mark.long), signal.SIGTERM, signal.SIGINT]
)
def test_an_interrupted_training_says_how_to_resume(
    prepared: Path, tmp_path: Path, environment: dict[str, str], wait_until: Callable, how: signal.Signals
) -> None:
    training = Training(tmp_path / "run", prepared, WHOLE, environment)
    launcher = training.start(minutes="10")
    wait_until(lambda: "epoch   1" in training.log() or launcher.poll() is not None)
    launcher.send_signal(how)
    assert launcher.wait() == 128 + how
    training.nothing_runs()
    hint = f"A checkpoint was saved after {training.steps_done():,} steps: rerun the same command to resume."
    assert f"interrupted: Training was interrupted. {hint}" in training.log()
    assert not list(training.folder.glob(".*.draft"))


@pytest.mark.parametrize(
    ("stage", "first", "second"),
    [
        pytest.param(1, 1, 2, marks=pytest.mark.long),
        pytest.param(0, 2, 1, marks=pytest.mark.long),
        pytest.param(2, 2, 1, marks=pytest.mark.long),
        pytest.param(3, 2, 1, marks=pytest.mark.long),
        pytest.param(3, 1, 2, marks=pytest.mark.long),
    ],
)
def test_another_world_size_goes_on_where_the_first_stopped(
    prepared: Path,
    tmp_path: Path,
    environment: dict[str, str],
    wait_until: Callable,
    stage: int,
    first: int,
    second: int,
) -> None:
    chosen = params(SEPARABLE, zero_stage=stage)
    whole = Training(tmp_path / "whole", prepared, chosen, environment)
    whole.finish()
    training = Training(tmp_path / "run", prepared, chosen, environment)
    launcher = training.start(first)
    wait_until(lambda: training.steps_done() >= 5 or launcher.poll() is not None)
    kill(training, launcher, "launcher", random.Random(0))
    training.finish(second)
    expected = steps(whole.folder / "runs/run")
    np.testing.assert_allclose(steps(training.folder / "runs/run"), expected, rtol=1e-4)


def test_the_same_training_twice_at_once_is_refused(
    prepared: Path, tmp_path: Path, environment: dict[str, str], wait_until: Callable
) -> None:
    training = Training(tmp_path / "run", prepared, params(epochs=1000), environment)
    first = training.start(run_id="first")
    wait_until(lambda: training.steps_done() >= 1 or first.poll() is not None)
    second = training.start(run_id="second", out="elsewhere")
    assert second.wait() == 1
    assert "The same training is running already (process " in training.log()
    assert first.poll() is None
    kill(training, first, "launcher", random.Random(0))


@pytest.mark.long
@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("how", ["rank", "launcher", "term", "ctrl-c"])
def test_killed_at_ten_random_moments(
    prepared: Path, tmp_path: Path, environment: dict[str, str], reference: dict, how: str, world: int
) -> None:
    chance = random.Random(f"{how} {world}")
    training = Training(tmp_path / "run", prepared, WHOLE, environment, fresh=True)
    shared_memory, temporary = set(os.listdir("/dev/shm")), set(os.listdir("/tmp"))
    kills = 0
    while kills < 10:
        launcher = training.start(world)
        # From interpreter start-up to a few steps later, so that every part of a run is covered.
        goal, end = training.steps_done() + chance.randrange(4), time.monotonic() + 60
        if chance.random() < 0.3:
            time.sleep(chance.uniform(0, 6))
        else:
            while training.steps_done() < goal and launcher.poll() is None and time.monotonic() < end:
                time.sleep(0.02)
            time.sleep(chance.uniform(0, 0.4))
        if launcher.poll() is not None:
            break
        kill(training, launcher, how, chance)
        kills += 1
    out = training.folder / "out" if launcher.returncode == 0 else training.finish(world)
    assert kills >= 5, "the training ended before it was killed often enough"
    assert outputs(out) == reference[world]
    assert not set(os.listdir("/dev/shm")) - shared_memory
    assert not [name for name in set(os.listdir("/tmp")) - temporary if "ral" in name or "deepspeed" in name]
