"""The device of a rank, and log lines that say what training runs on."""

import logging
import os
import shutil
from pathlib import Path

import torch

from ral.config.train import TrainConfig
from ral.launch.gpus import NVIDIA, has_gpu

logger = logging.getLogger(__name__)

# Features of processors that multiply bfloat16 numbers, as Linux names them: x86-64 and Arm.
BFLOAT16_FEATURES = {"avx512_bf16", "amx_bf16", "bf16"}


def assign_device(gpus: int) -> torch.device:
    """The device of this rank: by LOCAL_RANK, modulo the number of GPUs that it sees.

    A scheduler may show each process only its own GPU (SLURM's --gpus-per-task=1), which is then number 0 for all
    of them. LOCAL_RANK is set to the result, since DeepSpeed reads it.

    Args:
        gpus: number of GPUs that this process sees; 0 for the CPU.
    """
    if gpus == 0:
        return torch.device("cpu")
    index = int(os.environ["LOCAL_RANK"]) % gpus
    os.environ["LOCAL_RANK"] = str(index)
    return torch.device("cuda", index)


def log_device(device: torch.device, world_size: int, config: TrainConfig, root: Path = Path("/")) -> None:
    """Log device, number of processes, precision and compilation; warn of a GPU that is not used, and of a precision
    that makes a CPU slower. For rank 0; `root` as in `unused_gpu`.
    """
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"CPU (train.threads {config.threads})"
    )
    logger.info(
        "Training on %d × %s, train.precision %s, train.compile %s",
        world_size, name, config.precision, "true" if config.compile else "false",
    )  # fmt: skip
    if device.type == "cpu" and (text := unused_gpu(torch.__version__, torch.version.cuda, root)) is not None:
        logger.warning("%s", text)
    if device.type == "cpu" and config.precision == "bfloat16" and emulates_bfloat16(root):
        logger.warning(
            "This processor has no bfloat16 instructions (avx512_bf16 or amx_bf16 in /proc/cpuinfo, bf16 on Arm) and "
            "emulates them: training may be slower than with train.precision float32."
        )


def emulates_bfloat16(root: Path = Path("/")) -> bool:
    """Whether the processor lacks bfloat16 instructions; False if its features cannot be read.

    Args:
        root: root of the file system in which proc/cpuinfo is looked up.
    """
    try:
        features = set((root / "proc/cpuinfo").read_text().split())
    except OSError:
        return False
    return not features & BFLOAT16_FEATURES


def unused_gpu(version: str, cuda: str | None, root: Path = Path("/")) -> str | None:
    """Why training does not use the NVIDIA GPU of this machine, and what to do; None if there is none to use.

    Args:
        version: of torch.
        cuda: version of CUDA that torch was built for; None for a build without CUDA.
        root: root of the file system in which the GPU's device files are looked up.
    """
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return None
    if not has_gpu(NVIDIA, root) and shutil.which("nvidia-smi") is None:
        return None
    if cuda is None:
        return (
            f"This machine has an NVIDIA GPU, but PyTorch {version} is a build without CUDA: training runs on the CPU. "
            "Install a build with CUDA: `make clean`, then `make run` without TORCH_INDEX; or, in an environment of "
            "your own, `pip install --force-reinstall -c constraints.txt torch torchvision`. To hide the GPU and this "
            "warning, set CUDA_VISIBLE_DEVICES= (empty)."
        )
    return (
        f"This machine has an NVIDIA GPU, but PyTorch {version} cannot use it: training runs on the CPU. Its driver "
        f"may be too old for CUDA {cuda} (nvidia-smi shows the newest version that it supports), or a container may "
        "lack access to it (docker run --gpus all)."
    )
