"""GPUs of this machine, from device files; torch is imported only to count them."""

import os
from pathlib import Path

# Files that exist where a GPU driver is loaded: NVIDIA, AMD, WSL.
NVIDIA = ("dev/nvidia[0-9]*", "proc/driver/nvidia")
OTHERS = ("dev/kfd", "dev/dxg")


def has_gpu(patterns: tuple[str, ...] = (*NVIDIA, *OTHERS), root: Path = Path("/")) -> bool:
    """Whether this machine has a GPU that is not hidden by CUDA_VISIBLE_DEVICES.

    Args:
        patterns: files below `root`, any of which shows a GPU.
        root: root of the file system.
    """
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    return not hidden and any(any(root.glob(pattern)) for pattern in patterns)


def count_gpus() -> int:
    """Number of GPUs that torch can use in this process."""
    if not has_gpu():
        return 0
    import torch

    return torch.cuda.device_count()
