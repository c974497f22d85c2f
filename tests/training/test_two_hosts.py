"""Training and packing on two hosts with real SLURM and ssh: namespaces of this machine with a link between them."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from conftest import ROOT
from trainings import history, outputs, params, steps, train, write_params
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

    def start(self) -> subprocess.Popen[bytes]:
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
        failure = self.run / "failure.json"
        return json.loads(failure.read_text()) if failure.exists() else {}

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the launcher."""
        (launcher,) = self.cluster.node1.processes("tasks.train")
        launcher.send_signal(number)

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


def compare(training: Training, out: Path, alone: Path, two_processes: Path) -> None:
    """All losses, also of a resumed training, are those of one process, and the outputs to the byte those of two on one machine."""
    assert len(steps(training.run)) == STEPS
    np.testing.assert_allclose(steps(training.run), steps(alone), rtol=1e-4)
    np.testing.assert_allclose(history(out)["train_loss"], history(alone)["train_loss"], rtol=1e-4)
    assert outputs(out) == outputs(two_processes)


def test_slurm_trains_as_one_process(
    cluster: Cluster, prepared: Path, tmp_path: Path, alone: Path, two_processes: Path
) -> None:
    training = Training(cluster, tmp_path / "run", prepared, SLURM)
    out = training.finish()
    compare(training, out, alone, two_processes)
    jobs = cluster.node1.run("scontrol", "--oneliner", "show", "job")
    assert "NumNodes=2" in jobs
    assert "JobState=COMPLETED" in jobs


def resume(training: Training, alone: Path, two_processes: Path) -> None:
    """The same command resumes and ends as an uninterrupted training does."""
    before = training.steps_done()
    out = training.finish()
    assert f"Resuming from checkpoint at step {before}:" in training.log()
    compare(training, out, alone, two_processes)


def test_slurm_without_the_link_ends_both_hosts_and_resumes(
    cluster: Cluster, prepared: Path, tmp_path: Path, wait_until: Callable, alone: Path, two_processes: Path
) -> None:
    training = Training(cluster, tmp_path / "run", prepared, SLURM)
    failure = training.interrupted(wait_until, lambda: cluster.node2.set_link("down"))
    assert (failure["kind"], failure["retry"]) == ("queue", True)
    assert "NODE_FAIL" in failure["message"]
    cluster.node2.set_link("up")
    resume(training, alone, two_processes)


@pytest.mark.parametrize("how", ["scancel", "terminate", "kill"])
def test_a_cancelled_slurm_job_leaves_nothing_and_resumes(
    cluster: Cluster,
    prepared: Path,
    tmp_path: Path,
    wait_until: Callable,
    alone: Path,
    two_processes: Path,
    how: str,
) -> None:
    training = Training(cluster, tmp_path / "run", prepared, SLURM)
    interrupt = {
        "scancel": lambda: cluster.node1.run("scancel", "1"),
        "terminate": lambda: training.send(signal.SIGTERM),
        "kill": lambda: training.send(signal.SIGKILL),
    }
    failure = training.interrupted(wait_until, interrupt[how])
    assert how == "kill" or (failure["kind"], failure["retry"]) == ("interrupted", True)
    wait_until(lambda: not cluster.node1.run("squeue", "--noheader"))
    job = cluster.node1.run("scontrol", "--oneliner", "show", "job", "1")
    # The launcher lets its processes save and end first: a job that failed, for SLURM.
    assert "JobState=CANCELLED" in job or (how == "terminate" and "JobState=FAILED" in job), job
    assert not cluster.remaining("slurmstepd")
    resume(training, alone, two_processes)


def hostfile(folder: Path) -> dict[str, str]:
    path = folder / "hosts"
    path.write_text("node1 slots=1\nnode2 slots=1\n")
    return {"RAL_TRAINING_LAUNCHER": "hostfile", "RAL_TRAINING_HOSTFILE": str(path)}


def test_ssh_trains_as_one_process(
    cluster: Cluster, prepared: Path, tmp_path: Path, alone: Path, two_processes: Path
) -> None:
    training = Training(cluster, tmp_path / "run", prepared, hostfile(tmp_path))
    compare(training, training.finish(), alone, two_processes)


@pytest.mark.parametrize("how", ["link", "terminate", "kill"])
def test_ssh_interrupted_ends_both_hosts_and_resumes(
    cluster: Cluster,
    prepared: Path,
    tmp_path: Path,
    wait_until: Callable,
    alone: Path,
    two_processes: Path,
    how: str,
) -> None:
    training = Training(cluster, tmp_path / "run", prepared, hostfile(tmp_path))
    # DeepSpeed passes this file's variables to all hosts.
    (training.folder / ".deepspeed_env").write_text("DEEPSPEED_TIMEOUT=1\n")
    interrupt = {
        "link": lambda: cluster.node2.set_link("down"),
        "terminate": lambda: training.send(signal.SIGTERM),
        "kill": lambda: training.send(signal.SIGKILL),
    }
    failure = training.interrupted(wait_until, interrupt[how])
    kind = {"link": "lost_process", "terminate": "interrupted"}
    assert how == "kill" or (failure["kind"], failure["retry"]) == (kind[how], True)
    assert how != "link" or "lost its connection" in failure["message"]
    cluster.node2.set_link("up")
    resume(training, alone, two_processes)


PACK = """
import sys
from pathlib import Path
from ral.config.environment import load_environment
from trainings import prepare_phantom
prepare_phantom(Path(sys.argv[1]), Path(sys.argv[2]), load_environment().dask)
"""


def test_images_are_packed_by_slurm_jobs(
    cluster: Cluster, small_phantom: Path, prepared: Path, tmp_path: Path
) -> None:
    packed = tmp_path / "packed"
    packed.mkdir()
    settings = {
        "RAL_DASK_TARGET": "slurm", "RAL_DASK_WORKERS": "2", "RAL_DASK_MEMORY": "2GiB", "RAL_DASK_INTERFACE": "eth0",
        "RAL_STATE_DIR": str(tmp_path / "state"), "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
    }  # fmt: skip
    cluster.node1.run(sys.executable, "-c", PACK, str(small_phantom), str(packed), **settings)
    names = [path.relative_to(prepared) for path in prepared.rglob("*") if path.is_file()]
    assert names
    assert [(packed / name).read_bytes() for name in names] == [
        (prepared / name).read_bytes() for name in names
    ]
    jobs = cluster.node1.run("scontrol", "--oneliner", "show", "job")
    assert jobs.count("JobName=dask-worker") == 2
    assert not cluster.remaining("dask")


def test_a_failed_test_leaves_no_host(tmp_path: Path, wait_until: Callable) -> None:
    skip_unless_possible()
    processes: list[psutil.Process] = []

    def fail() -> None:
        with two_hosts(tmp_path / "cluster", wait_until) as cluster:
            for host in (cluster.node1, cluster.node2):
                host.start("setsid", "sleep", "1000000", log=tmp_path / "log")
                wait_until(lambda host=host: host.processes("sleep 1000000"))
                processes.extend(host.processes(""))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert {"slurmctld", "slurmd", "munged", "sshd", "sleep"} <= {p.info["name"] for p in processes}
    wait_until(lambda: not any(process.is_running() for process in processes))
