"""How the device computes: determinism and TF32 on GPUs, memory on CPUs, and whether torch.compile works on this
machine.
"""

import ctypes
import logging
import os
import platform

import torch

from ral.config.train import TrainConfig

logger = logging.getLogger(__name__)


def set_cuda_math(config: TrainConfig) -> None:
    """Apply train.cuda_math to this process; call it before anything runs on the GPU. No effect on CPUs.

    See PyTorch's notes on reproducibility: https://docs.pytorch.org/docs/stable/notes/randomness.html.
    """
    if not torch.cuda.is_available():
        return
    deterministic = config.cuda_math == "deterministic"
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
    # Operations without a deterministic form warn instead of ending the training.
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = not deterministic
    torch.backends.cudnn.allow_tf32 = not deterministic
    torch.backends.cuda.matmul.allow_tf32 = not deterministic


# Parameters of glibc's mallopt: memory to keep at the end of the heap, to add to it at a time, and the size from
# which an allocation gets pages of its own.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees, for its next allocations; for training on CPUs with glibc.

    By default every large activation gets pages of its own, which go back to the system when it is freed, in every
    step. Mapping and clearing them anew takes a tenth of the time of a step. Peak memory stays the same.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    for parameter, value in ((_MMAP_THRESHOLD, 1 << 30), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 64 << 20)):
        mallopt(parameter, value)


def compile_works(device: torch.device) -> bool:
    """Whether torch.compile works on all ranks: it needs a C compiler, and Triton on GPUs. All ranks must call it."""
    works = torch.ones((), device=device)
    try:
        torch.compile(_probe, dynamic=False)(torch.zeros(8, device=device))
    except Exception as error:  # noqa: BLE001 - any failure of a compiler; training works without it
        works.zero_()
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        logger.warning(
            "torch.compile does not work here (%s): training runs without it. Install gcc.", reason
        )
    if torch.distributed.get_world_size() > 1:
        torch.distributed.all_reduce(works, torch.distributed.ReduceOp.MIN)
    return bool(works)


def _probe(x: torch.Tensor) -> torch.Tensor:
    return torch.sin(x) + 1
