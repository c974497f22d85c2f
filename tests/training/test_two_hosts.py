"""Training and packing on two hosts with real SLURM and ssh: namespaces of this machine with a link between them."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from conftest import ROOT
from trainings import history, outputs, params, prepare_phantom, steps, train, write_params
from two_hosts import Cluster, skip_unless_possible, two_hosts

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]

# Long enough to be interrupted: 247 images in batches of 32.
EPOCHS = 5
STEPS = EPOCHS * 8


class Training:
    """`python -m tasks.train` on node1 in a folder of its own, with a process on each host, again and again."""

    def __init__(self, cluster: Cluster, folder: Path, prepared: Path, settings: dict[str, str]) -> None:
        folder.mkdir()
        self.cluster, self.folder, self.prepared = cluster, folder, prepared
        write_params(folder, params(epochs=EPOCHS))
        self.settings = settings | {
            "RAL_STATE_DIR": str(folder / "state"), "RAL_RUN_ID": f"run-{folder.name}", "PYTHONPATH": str(ROOT),
            "RAL_TRAINING_CHECKPOINT_MINUTES": "0",
        }  # fmt: skip

    @property
    def run(self) -> Path:
        return self.folder / "runs" / f"run-{self.folder.name}"

    def start(self) -> psutil.Popen:
        command = [sys.executable, "-m", "tasks.train", "--prepared", str(self.prepared), "--out", "out"]
        return self.cluster.node1.start(
            *command, log=self.folder / "log.txt", cwd=self.folder, **self.settings
        )

    def finish(self) -> Path:
        """Train to the end; the outputs remain, and no process."""
        assert self.start().wait() == 0, self.log()
        assert not self.remaining()
        return self.folder / "out"

    def steps_done(self) -> int:
        """Optimizer steps of the newest checkpoint."""
        names = sorted(path.name for path in (self.folder / "state").rglob("step-*"))
        return int(names[-1].removeprefix("step-")) if names else 0

    def interrupted(self, wait_until: Callable, interrupt: Callable[[], object]) -> dict:
        """Start it, interrupt it in the middle, and wait until nothing runs on either host; how it says it failed."""
        launcher = self.start()
        wait_until(lambda: self.steps_done() >= 3 or launcher.poll() is not None, every=0.02)
        assert launcher.poll() is None, self.log()
        assert all(host.processes("ral.training") for host in (self.cluster.node1, self.cluster.node2))
        interrupt()
        assert launcher.wait() != 0, self.log()
        wait_until(lambda: not self.remaining())
        assert 3 <= self.steps_done() < STEPS
        return json.loads((self.run / "failure.json").read_text())

    def remaining(self) -> list[str]:
        """Processes of this training on both hosts: watchers, ranks, launchers."""
        return self.cluster.remaining(str(self.run))

    def log(self) -> str:
        return (self.folder / "log.txt").read_text() + self.cluster.logs()


SLURM = {
    "RAL_TRAINING_LAUNCHER": "slurm",
    "RAL_TRAINING_SLURM_NODES": "2",
    "RAL_TRAINING_SLURM_TASKS_PER_NODE": "1",
}


@pytest.fixture
def cluster(tmp_path: Path, wait_until: Callable) -> Iterator[Cluster]:
    skip_unless_possible()
    with two_hosts(tmp_path / "cluster", wait_until) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def alone(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same training by one process."""
    skip_unless_possible()
    return train(prepared, tmp_path_factory.mktemp("alone") / "out", epochs=EPOCHS)


@pytest.fixture(scope="module")
def two_processes(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same training by two processes of this machine."""
    skip_unless_possible()
    return train(prepared, tmp_path_factory.mktemp("two") / "out", 2, epochs=EPOCHS)


def the_same(training: Training, out: Path, alone: Path, two_processes: Path) -> None:
    """The losses are those of one process, and the outputs to the byte those of two on one machine."""
    assert len(steps(training.run)) == STEPS
    np.testing.assert_allclose(steps(training.run), steps(alone), rtol=1e-4)
    np.testing.assert_allclose(history(out)["train_loss"], history(alone)["train_loss"], rtol=1e-4)
    assert outputs(out) == outputs(two_processes)


def test_slurm_trains_as_one_process(
    cluster: Cluster, prepared: Path, tmp_path: Path, alone: Path, two_processes: Path
) -> None:
    training = Training(cluster, tmp_path / "run", prepared, SLURM)
    out = training.finish()
    the_same(training, out, alone, two_processes)
    jobs = cluster.node1.run("scontrol", "--oneliner", "show", "job")
    assert "NumNodes=2" in jobs
    assert "JobState=COMPLETED" in jobs
