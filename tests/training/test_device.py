"""Which device a rank takes, and what the log says about it; GPUs are simulated by numbers and files."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from forks import forks
from trainings import params, write_params

from ral.training.device import assign_device, emulates_bfloat16, log_device, unused_gpu


@pytest.mark.parametrize(
    ("local_rank", "gpus", "device", "after"),
    [
        ("3", 8, "cuda:3", "3"),
        ("3", 1, "cuda:0", "0"),  # --gpus-per-task=1: every task sees one GPU, which is number 0
        ("3", 2, "cuda:1", "1"),
        ("3", 0, "cpu", "3"),
    ],
)
def test_a_rank_takes_a_gpu_that_it_sees(
    monkeypatch: pytest.MonkeyPatch, local_rank: str, gpus: int, device: str, after: str
) -> None:
    monkeypatch.setenv("LOCAL_RANK", local_rank)
    assert assign_device(gpus) == torch.device(device)
    assert os.environ["LOCAL_RANK"] == after  # DeepSpeed reads it


@pytest.mark.parametrize("name", ["dev/nvidia0", "proc/driver/nvidia/version", "nvidia-smi"])
def test_a_gpu_that_torch_cannot_use_is_named_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert unused_gpu("2.13.0+cpu", None, tmp_path) is None
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).touch()
    (tmp_path / name).chmod(0o755)
    without = unused_gpu("2.13.0+cpu", None, tmp_path)
    assert without is not None
    assert "2.13.0+cpu is a build without CUDA" in without
    assert "pip install --force-reinstall -c constraints.txt torch torchvision" in without
    too_new = unused_gpu("2.13.0", "13.0", tmp_path)
    assert too_new is not None
    assert "driver may be too old for CUDA 13.0" in too_new
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert unused_gpu("2.13.0+cpu", None, tmp_path) is None


@pytest.mark.parametrize(
    ("flags", "emulates"),
    [
        ("flags : fpu avx512f avx512_bf16", False),
        ("flags : fpu amx_bf16 amx_tile", False),
        ("Features : fp asimd svebf16 bf16", False),
        ("flags : fpu avx2", True),
        ("flags : fpu avx512f avx512_vnni", True),
        (None, False),  # such as macOS, which has no such file
    ],
)
def test_a_processor_without_bfloat16_instructions_is_recognised(
    tmp_path: Path, flags: str | None, emulates: bool
) -> None:
    (tmp_path / "proc").mkdir()
    if flags is not None:
        (tmp_path / "proc/cpuinfo").write_text(f"processor : 0\n{flags}\n\n")
    assert emulates_bfloat16(tmp_path) is emulates


@pytest.mark.parametrize("flags", ["avx2", "avx512_bf16"])
def test_emulated_bfloat16_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture, flags: str) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text(f"flags : {flags}\n")
    for precision in ("float32", "bfloat16"):
        log_device(torch.device("cpu"), 1, params(precision=precision).train, tmp_path)
    assert caplog.text.count("has no bfloat16 instructions") == (flags == "avx2")


@pytest.mark.skipif(sys.platform != "linux", reason="Linux counts page faults per process")
def test_freed_memory_is_used_again() -> None:
    """Without it, each of these allocations is mapped anew: 8,192 page faults. The first ones grow the heap."""
    script = """
import resource
from ral.memory import keep_freed_memory
keep_freed_memory()
import torch
faults = []
for _ in range(16):
    torch.ones(1 << 23)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(faults[15] - faults[13])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 100


def test_the_log_says_what_training_runs_on(
    prepared: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/nvidia-smi").touch(0o755)
    write_params(tmp_path, params(epochs=1))
    variables = {
        "PATH": f"{tmp_path / 'bin'}:{environment['PATH']}", "PYTHONPATH": str(ROOT), "RAL_TRAINING_PROCESSES": "2",
        "CUDA_VISIBLE_DEVICES": "99",  # no GPU has that number
    }  # fmt: skip
    done = subprocess.run(
        [*forks().command("tasks.train"), "--prepared", str(prepared), "--out", "out"],
        cwd=tmp_path, env=environment | variables, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    line = "Training on 2 × CPU (train.threads 1), train.precision float32, train.compile false"
    assert done.stdout.count(line) == 1, done.stdout
    assert done.stdout.count("This machine has an NVIDIA GPU, but PyTorch") == 1, done.stdout
