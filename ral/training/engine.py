"""The DeepSpeed engine, from one CPU process to many GPUs, and its state as plain named tensors.

All state is float32 (half precision comes from autocast), so weights are identical in every ZeRO stage, and
state saved with one stage and world size can be loaded with another.
"""

import logging
import os
import socket
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ral.config.train import TrainConfig
from ral.errors import UserError
from ral.training.device import assign_device

# MASTER_ADDR when all ranks run on one machine (`ral.launch.local`).
LOOPBACK = "127.0.0.1"

# AdamW's state per weight, besides the step count.
MOMENTS = ("exp_avg", "exp_avg_sq")


def init_process() -> tuple[int, int, torch.device]:
    """Join the process group; the launcher has set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT.

    Returns:
        Rank, world size and this process's device; see `assign_device`.
    """
    gpu = torch.cuda.is_available()
    # Otherwise DeepSpeed probes for accelerators and prints warnings.
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if gpu else "cpu")
    import deepspeed

    if not gpu:
        # Only inference uses this operator, and building it needs a compiler and half a minute. On a GPU nothing
        # builds it, and reading this table would probe the compilers of all other operators.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # DeepSpeed calls deprecated names of torch collectives at every step.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    device = assign_device(torch.cuda.device_count() if gpu else 0)
    if gpu:
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    if os.environ["MASTER_ADDR"] == LOOPBACK:
        _join_on_loopback(backend, device)
    deepspeed.init_distributed(dist_backend=backend, verbose=False)
    return torch.distributed.get_rank(), torch.distributed.get_world_size(), device


def _join_on_loopback(backend: str, device: torch.device) -> None:
    """Create the process group of a single machine on loopback sockets, unreachable from other machines.

    By default torch's store listens on every interface, whatever MASTER_ADDR is, and has no authentication.

    Raises:
        UserError: MASTER_PORT is in use.
    """
    from deepspeed.constants import default_pg_timeout

    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    port = int(os.environ["MASTER_PORT"])
    interface = "lo0" if sys.platform == "darwin" else "lo"
    os.environ |= {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": interface}
    listening = None
    if rank == 0:
        try:
            listening = socket.create_server((LOOPBACK, port)).detach()
        except OSError as error:
            raise UserError(
                f"Training cannot use port {port} of this machine for its rendezvous: {error.strerror}. Rerun the same "
                "command, or set training.port to a free port.",
                retry=True,
            ) from None
    store = torch.distributed.TCPStore(
        LOOPBACK, port, world, rank == 0, timeout=default_pg_timeout, master_listen_fd=listening
    )
    torch.distributed.init_process_group(
        backend, store=store, rank=rank, world_size=world, timeout=default_pg_timeout,
        device_id=device if device.type == "cuda" and world > 1 else None,  # as DeepSpeed does it
    )  # fmt: skip


class AdamW(torch.optim.AdamW):
    """AdamW that skips steps with non-finite gradients, and clips gradients where DeepSpeed does not.

    Args:
        groups: parameter groups.
        clip_norm: maximum gradient norm; None where DeepSpeed clips (under ZeRO, where gradients are
            sharded).
    """

    def __init__(self, groups: list[dict[str, Any]], clip_norm: float | None, **options: Any) -> None:
        super().__init__(groups, fused=True, **options)
        self.clip_norm = clip_norm
        self.found_inf: Tensor | None = None
        """After a step: 1 if it was skipped, on the device; None where DeepSpeed decides that."""

    def step(self, closure: Any = None) -> Any:
        """Take one step, or skip it."""
        if self.clip_norm is not None:
            weights = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
            norm = torch.nn.utils.get_total_norm([p.grad for p in weights])
            # The fused step reads this on the device, without a host synchronisation.
            self.found_inf = (~torch.isfinite(norm)).float()
            torch.nn.utils.clip_grads_with_norm_(weights, self.clip_norm, norm)
        return super().step(closure)


def accumulation(config: TrainConfig, world: int) -> int:
    """Gradient accumulation steps: micro-batches per rank and optimizer step.

    Raises:
        UserError: the global batch cannot be split evenly.
    """
    if config.batch_size % world:
        raise UserError(
            f"train.batch_size ({config.batch_size}) must be a multiple of the {world} processes."
        )
    rank_batch = config.batch_size // world
    micro = config.micro_batch or rank_batch
    if rank_batch % micro:
        raise UserError(
            f"train.micro_batch ({micro}) must divide the {rank_batch} images per process, which is train.batch_size "
            f"({config.batch_size}) over {world} processes."
        )
    return rank_batch // micro


def start_engine(model: nn.Module, groups: list[dict[str, Any]], config: TrainConfig, world: int) -> Any:
    """Initialise DeepSpeed with the model and AdamW over `groups`; the engine averages gradients over ranks.

    Raises:
        UserError: the global batch cannot be split evenly, or DeepSpeed rejects train.deepspeed_config.
    """
    import deepspeed

    optimizer_clips = config.zero_stage == 0
    optimizer = AdamW(groups, config.clip_norm if optimizer_clips else None, lr=config.learning_rate)
    steps = accumulation(config, world)
    settings = merge(
        merge(
            {"timers": {"throughput": {"enabled": False}}}, config.deepspeed_config
        ),  # it waits for the GPU twice
        {
            "train_batch_size": config.batch_size,
            "train_micro_batch_size_per_gpu": config.batch_size // world // steps,
            "gradient_clipping": 0.0 if optimizer_clips else config.clip_norm,
            "zero_optimization": {"stage": config.zero_stage},
            "zero_allow_untested_optimizer": True,
            "steps_per_print": 10**9,
        },
    )
    try:
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
    except (ValueError, AssertionError) as error:
        if config.deepspeed_config:
            raise UserError(f"train.deepspeed_config: rejected by DeepSpeed: {error}") from None
        raise
    if config.zero_stage == 0:  # other stages keep weights in flat buffers of their own layout
        engine.module.to(memory_format=torch.channels_last)
        engine.enable_backward_allreduce = world > 1  # it would copy every gradient to a buffer and back
    return engine


def merge(user: dict[str, Any], fixed: dict[str, Any]) -> dict[str, Any]:
    """Merge two nested configurations. Only sections occur in both, with disjoint keys (`ral.config.train`
    checks it).
    """
    merged = dict(user)
    for name, value in fixed.items():
        merged[name] = merge(user.get(name, {}), value) if isinstance(value, dict) else value
    return merged


def set_learning_rate(engine: Any, rate: float) -> None:
    """Set the learning rate of the next step, scaled by each group's `lr_scale` (layer-wise decay)."""
    for group in engine.optimizer.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)


def step_was_skipped(engine: Any, device: torch.device) -> Tensor:
    """1 if the last step was skipped because of non-finite gradients, else 0; float32 scalar on the device."""
    if hasattr(engine.optimizer, "overflow"):
        return torch.full((), float(engine.optimizer.overflow), device=device)
    return engine.optimizer.found_inf


def local_state_dict(engine: Any) -> dict[str, Tensor]:
    """Weights and buffers by name as held by this rank: its shards under ZeRO 3, otherwise complete."""
    weights = {name: getattr(p, "ds_tensor", p).data for name, p in engine.module.named_parameters()}
    persistent = engine.module.state_dict(keep_vars=True)
    return weights | {name: buffer for name, buffer in engine.module.named_buffers() if name in persistent}


def shard_state_dict(engine: Any, full: dict[str, Tensor]) -> dict[str, Tensor]:
    """This rank's part of complete tensors, in the names and shapes of `local_state_dict`."""
    weights = dict(engine.module.named_parameters())
    shards = {}
    for name, local in local_state_dict(engine).items():
        value = full[name].to(local.device)
        shards[name] = _shard(value, local.numel()) if hasattr(weights.get(name), "ds_id") else value.clone()
    return shards


def _shard(full: Tensor, numel: int) -> Tensor:
    """This rank's shard of a weight under ZeRO 3: flat, the last one zero-padded."""
    padded = full.new_zeros(numel * torch.distributed.get_world_size())
    padded[: full.numel()] = full.flatten()
    return padded.narrow(0, numel * torch.distributed.get_rank(), numel).clone()


@contextmanager
def use_weights(engine: Any, values: dict[str, Tensor]) -> Iterator[None]:
    """Inside the block, the engine holds `values` (names and shapes as `local_state_dict`) instead of its own
    weights.
    """
    local = local_state_dict(engine)
    saved = {name: tensor.clone() for name, tensor in local.items()}
    for name, tensor in local.items():
        tensor.copy_(values[name])
    try:
        yield
    finally:
        for name, tensor in local.items():
            tensor.copy_(saved[name])


def full_state_dict(engine: Any, keep: bool = True) -> dict[str, Tensor]:
    """Complete weights and buffers by name, as copies on the CPU. All ranks must call it.

    Under ZeRO 3 one weight at a time is gathered, so that the GPU never holds the whole network.

    Args:
        engine: DeepSpeed's engine.
        keep: False on ranks that only take part in the gathering; their dictionary is empty.
    """
    import deepspeed

    full = {}
    for name, tensor in engine.module.state_dict(keep_vars=True).items():
        sharded = hasattr(tensor, "ds_id")
        with deepspeed.zero.GatheredParameters([tensor], enabled=sharded):
            if keep:
                full[name] = tensor.detach().to("cpu", copy=True)
    return full


def optimizer_state_dict(engine: Any, keep: bool = True) -> dict[str, Tensor]:
    """AdamW's complete moments as `<moment>/<weight>`, on the CPU; empty before the first step.

    All ranks must call it; `keep` as in `full_state_dict`.
    """
    from deepspeed.utils import safe_get_full_optimizer_state

    moments: dict[str, Tensor] = {}
    if not _optimizer(engine).state:
        return moments
    _link_moments(engine)
    for name, weight in _trainable(engine):
        for moment in MOMENTS:
            if hasattr(weight, "ds_id") or hasattr(weight, "_hp_mapping"):
                value = safe_get_full_optimizer_state(weight, moment)
            else:
                value = engine.optimizer.state[weight][moment]
            if keep:
                moments[f"{moment}/{name}"] = value.cpu()
    return moments


def optimizer_steps(engine: Any) -> int:
    """Number of AdamW steps taken; skipped steps are not counted."""
    states = list(_optimizer(engine).state.values())
    return int(states[0]["step"]) if states else 0


def load_optimizer_state_dict(engine: Any, values: dict[str, Tensor], steps: int) -> None:
    """Restore `optimizer_state_dict` and `optimizer_steps`, saved with any ZeRO stage and world size."""
    optimizer = _optimizer(engine)
    if not values:
        return
    for tensor in _stepped_tensors(engine):
        empty = {moment: torch.zeros_like(tensor) for moment in MOMENTS}
        optimizer.state[tensor] = {"step": torch.tensor(float(steps), device=tensor.device), **empty}
    _link_moments(engine)
    from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

    for name, weight in _trainable(engine):
        for moment in MOMENTS:
            value = values[f"{moment}/{name}"].to(weight.device)
            if hasattr(weight, "ds_id"):
                safe_set_local_optimizer_state(weight, _shard(value, weight.ds_tensor.numel()), moment)
            elif hasattr(weight, "_hp_mapping"):
                safe_set_full_optimizer_state(weight, value, moment)
            else:
                optimizer.state[weight][moment].copy_(value)


def _link_moments(engine: Any) -> None:
    """Link every weight to its moments under ZeRO 1 and 2.

    DeepSpeed does this only once, after the first parameter group's step, when the other groups have no
    moments yet.
    """
    if hasattr(engine.optimizer, "_lazy_init_hp_params_optimizer_state"):
        engine.optimizer._hp_optimizer_states_linked = False
        engine.optimizer._lazy_init_hp_params_optimizer_state()


def _optimizer(engine: Any) -> torch.optim.Optimizer:
    """The torch optimizer, unwrapped from DeepSpeed's if necessary."""
    return getattr(engine.optimizer, "optimizer", engine.optimizer)


def _stepped_tensors(engine: Any) -> list[Tensor]:
    """The tensors that AdamW updates: the weights, or their flat partitions under ZeRO."""
    for name in ("single_partition_of_fp32_groups", "fp32_partitioned_groups_flat"):
        if hasattr(engine.optimizer, name):
            return list(getattr(engine.optimizer, name))
    return [weight for _, weight in _trainable(engine)]


def _trainable(engine: Any) -> list[tuple[str, Any]]:
    return [(name, weight) for name, weight in engine.module.named_parameters() if weight.requires_grad]
