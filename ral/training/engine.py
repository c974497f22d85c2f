"""DeepSpeed: one engine from one CPU process to many GPUs."""

import logging
import os
from typing import Any

import torch
from torch import nn

from ral.config.train import TrainConfig
from ral.errors import UserError


def init_process() -> tuple[int, int, torch.device]:
    """Join the other processes; the launcher set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT.

    Returns:
        Rank, world size and this process's device (by its place on the machine, not by its global rank).
    """
    gpu = torch.cuda.is_available()
    os.environ.setdefault(
        "DS_ACCELERATOR", "cuda" if gpu else "cpu"
    )  # else it searches, and warns of what it finds
    import deepspeed

    # Compiling this operator takes half a minute and a compiler, and only inference uses it.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    device = torch.device("cpu")
    if gpu:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    deepspeed.init_distributed(dist_backend="nccl" if device.type == "cuda" else "gloo", verbose=False)
    return torch.distributed.get_rank(), torch.distributed.get_world_size(), device


def micro_batch_size(config: TrainConfig, world: int) -> int:
    """Films per process and backward pass.

    Raises:
        UserError: the global batch cannot be shared out evenly.
    """
    if config.batch_size % world:
        raise UserError(
            f"train.batch_size ({config.batch_size}) must be a multiple of the {world} processes."
        )
    part = config.batch_size // world
    micro = config.micro_batch or part
    if part % micro:
        raise UserError(
            f"train.micro_batch ({micro}) must divide the {part} films that each of {world} processes has of "
            f"train.batch_size ({config.batch_size})."
        )
    return micro


def start_engine(model: nn.Module, config: TrainConfig, world: int) -> Any:
    """Hand the model to DeepSpeed with AdamW; the engine averages gradients over processes and accumulation.

    Raises:
        UserError: the global batch cannot be shared out evenly.
    """
    import deepspeed

    # Norms and biases are not decayed: shrinking them only fights the data's own scale.
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=config.learning_rate,
    )
    settings = {
        "train_batch_size": config.batch_size,
        "train_micro_batch_size_per_gpu": micro_batch_size(config, world),
        "gradient_clipping": config.clip_norm,
        "zero_optimization": {"stage": config.zero_stage},
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": config.precision == "bfloat16"},
        "steps_per_print": 10**9,
    }
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
    if config.zero_stage == 0:  # the other stages keep weights in flat buffers, whose layout is theirs
        engine.module.to(memory_format=torch.channels_last)
    return engine
