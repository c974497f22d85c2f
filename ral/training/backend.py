"""How the device computes: determinism and TF32 on GPUs, and whether torch.compile works on this
machine.
"""

import logging
import os

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
