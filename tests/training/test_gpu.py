"""Tests that need a GPU: pytest -m gpu."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from ruamel.yaml import YAML
from trainings import outputs, params, write_spec

from ral.launch.base import free_port

pytestmark = pytest.mark.gpu


def test_a_run_takes_the_gpus_of_the_machine(
    prepared: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    with (tmp_path / "params.yaml").open("w") as stream:
        YAML().dump(params(epochs=1, precision="bfloat16").model_dump(), stream)
    done = subprocess.run(
        [sys.executable, "-m", "tasks.train", "--prepared", str(prepared), "--out", "out"], cwd=tmp_path, text=True,
        env=environment | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    told = re.findall(
        r"Training on (\d+) × (.+), train\.precision bfloat16, train\.compile false", done.stdout
    )
    assert [name for _, name in told] == [torch.cuda.get_device_name()]
    assert 1 <= int(told[0][0]) <= torch.cuda.device_count()
    assert all(outputs(tmp_path / "out").values())


def test_a_rank_that_sees_one_gpu_takes_it_whatever_its_number(prepared: Path, tmp_path: Path) -> None:
    """As under SLURM with --gpus-per-task=1."""
    spec = write_spec(prepared, tmp_path / "out", params(epochs=1))
    variables = {
        "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()),
        "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0], "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "ral.training", str(spec)], env=os.environ | variables, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert f"Training on 1 × {torch.cuda.get_device_name()}" in done.stdout


def test_the_quick_checks_of_the_engine_pass() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--quick"], cwd=ROOT, capture_output=True, text=True
    )
    assert json.loads(done.stdout.splitlines()[-1])["failed"] == [], done.stdout + done.stderr
