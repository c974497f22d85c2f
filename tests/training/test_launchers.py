"""The same training through other launchers gives the same losses."""

import shlex
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from trainings import params, steps, train, write_params, write_spec

from ral.config.environment import SlurmConfig, TrainingTarget
from ral.launch import launch

STAND_IN = Path(__file__).parents[1] / "launch" / "slurm.py"


@pytest.mark.long
def test_two_nodes_without_ssh(prepared: Path, tmp_path: Path, wait_until: Callable) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 slots=1\nlocalhost slots=1\n")
    target = TrainingTarget(launcher="hostfile", hostfile=hosts, ssh=False)
    out = tmp_path / "out"
    spec = write_spec(prepared, out, params(zero_stage=1))
    script = out / "launch.sh"
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(launch, spec, target, out)
        wait_until(lambda: script.exists() and script.read_text().count("\n") == 2)
        second = subprocess.Popen(shlex.split(script.read_text().splitlines()[1]), start_new_session=True)
        assert second.wait() == 0
        first.result()
    np.testing.assert_allclose(
        steps(out), steps(train(prepared, tmp_path / "local", 2, zero_stage=1)), rtol=1e-6
    )


@pytest.mark.long
def test_slurm(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state, programs = tmp_path / "slurm", tmp_path / "bin"
    state.mkdir()
    programs.mkdir()
    for name in ("sbatch", "srun", "scontrol", "scancel"):
        (programs / name).write_text(
            f'#!/bin/sh\nexec {shlex.join([sys.executable, str(STAND_IN), name])} "$@"\n'
        )
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{Path(sys.executable).parent}:/usr/bin:/bin")
    monkeypatch.setenv("SLURM_STANDIN", str(state))
    out = tmp_path / "out"
    spec = write_spec(prepared, out, params())
    launch(spec, TrainingTarget(launcher="slurm", slurm=SlurmConfig(nodes=2)), out)
    np.testing.assert_allclose(steps(out), steps(train(prepared, tmp_path / "local", 2)), rtol=1e-6)


@pytest.mark.long
def test_loopback_is_all_the_network_that_training_needs(
    prepared: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    if subprocess.run(["unshare", "--net", "ip", "link", "set", "lo", "up"], capture_output=True).returncode:
        pytest.skip("no network namespace can be made here")
    write_params(tmp_path, params(epochs=1))
    train = shlex.join([sys.executable, "-m", "tasks.train", "--prepared", str(prepared), "--out", "out"])
    done = subprocess.run(
        ["unshare", "--net", "sh", "-c", f"ip link set lo up && exec {train}"], cwd=tmp_path, text=True,
        env=environment | {"RAL_TRAINING_PROCESSES": "2", "PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert (tmp_path / "out/model.safetensors").exists()
