"""DeepSpeed: one engine from one CPU process to many GPUs, and its state as plain tensors by name.

Everything is float32 (half precision is autocast's), so that a weight is the same number in every ZeRO stage, and what
is read here from one stage and world size can be put back into another.
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

# MASTER_ADDR where all processes are on one machine (`ral.launch.local`).
LOOPBACK = "127.0.0.1"

# AdamW's state of a weight, beside the number of steps.
MOMENTS = ("exp_avg", "exp_avg_sq")


def init_process() -> tuple[int, int, torch.device]:
    """Join the other processes; the launcher set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT.

    Returns:
        Rank, world size and this process's device (by its place on the machine, not by its global rank).
    """
    gpu = torch.cuda.is_available()
    # Else it searches, and warns of what it finds.
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if gpu else "cpu")
    import deepspeed

    # Compiling this operator takes half a minute and a compiler, and only inference uses it.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # It calls collectives by names that torch is about to rename, at every step.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    device = torch.device("cpu")
    if gpu:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    if os.environ["MASTER_ADDR"] == LOOPBACK:
        _join_on_loopback(backend, device)
    deepspeed.init_distributed(dist_backend=backend, verbose=False)
    return torch.distributed.get_rank(), torch.distributed.get_world_size(), device


def _join_on_loopback(backend: str, device: torch.device) -> None:
    """Form the process group of one machine with sockets that no other machine can reach.

    By itself torch's store listens on every address, whatever MASTER_ADDR says, and asks nobody for a password.

    Raises:
        UserError: somebody else listens at MASTER_PORT.
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
                f"The training processes cannot meet at port {port} of this machine: {error.strerror}. Run the same "
                "command again, or set training.port to a free port.",
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
    """AdamW that passes over a step whose gradients are not finite, and clips where DeepSpeed does not.

    Args:
        groups: parameter groups.
        clip_norm: largest norm of the gradient; None where DeepSpeed clips (ZeRO, whose gradients are in parts).
    """

    def __init__(self, groups: list[dict[str, Any]], clip_norm: float | None, **options: Any) -> None:
        super().__init__(groups, fused=True, **options)
        self.clip_norm = clip_norm
        self.found_inf: Tensor | None = None
        """After a step: 1 if it was passed over, on the device; None where DeepSpeed decides that."""

    def step(self, closure: Any = None) -> Any:
        """One step, or none."""
        if self.clip_norm is not None:
            weights = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
            norm = torch.nn.utils.get_total_norm([p.grad for p in weights])
            # The fused step reads this on the device: no one waits.
            self.found_inf = (~torch.isfinite(norm)).float()
            torch.nn.utils.clip_grads_with_norm_(weights, self.clip_norm, norm)
        return super().step(closure)


def accumulation(config: TrainConfig, world: int) -> int:
    """Micro-batches of a process per optimizer step.

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
            f"train.micro_batch ({micro}) must divide the {part} images that each of {world} processes has of "
            f"train.batch_size ({config.batch_size})."
        )
    return part // micro


def start_engine(model: nn.Module, groups: list[dict[str, Any]], config: TrainConfig, world: int) -> Any:
    """Hand the model to DeepSpeed with AdamW over `groups`; the engine averages gradients over processes.

    Raises:
        UserError: the global batch cannot be shared out evenly, or DeepSpeed refuses train.deepspeed_config.
    """
    import deepspeed

    own_clipping = config.zero_stage == 0
    optimizer = AdamW(groups, config.clip_norm if own_clipping else None, lr=config.learning_rate)
    steps = accumulation(config, world)
    settings = merge(
        config.deepspeed_config,
        {
            "train_batch_size": config.batch_size,
            "train_micro_batch_size_per_gpu": config.batch_size // world // steps,
            "gradient_clipping": 0.0 if own_clipping else config.clip_norm,
            "zero_optimization": {"stage": config.zero_stage},
            "zero_allow_untested_optimizer": True,
            "steps_per_print": 10**9,
        },
    )
    try:
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
    except (ValueError, AssertionError) as error:
        if config.deepspeed_config:
            raise UserError(f"train.deepspeed_config: DeepSpeed refuses it: {error}") from None
        raise
    if config.zero_stage == 0:  # the other stages keep weights in flat buffers, whose layout is theirs
        engine.module.to(memory_format=torch.channels_last)
    return engine


def merge(theirs: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
    """Settings of both; where both say something, it is a section whose keys differ (`ral.config.train` sees to that)."""
    merged = dict(theirs)
    for name, value in ours.items():
        merged[name] = merge(theirs.get(name, {}), value) if isinstance(value, dict) else value
    return merged


def set_learning_rate(engine: Any, rate: float) -> None:
    """Set the learning rate of the next step; a group's `lr_scale` (layer-wise decay) multiplies it."""
    for group in engine.optimizer.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)


def step_was_skipped(engine: Any, device: torch.device) -> Tensor:
    """1 if the last step was passed over for non-finite gradients, else 0; float32 scalar on the device."""
    if hasattr(engine.optimizer, "overflow"):
        return torch.tensor(float(engine.optimizer.overflow), device=device)
    return engine.optimizer.found_inf


def local_state_dict(engine: Any) -> dict[str, Tensor]:
    """Weights and buffers by name, as this process holds them: under ZeRO 3 its part of each weight, else all of it."""
    weights = {name: getattr(p, "ds_tensor", p).data for name, p in engine.module.named_parameters()}
    kept = engine.module.state_dict(keep_vars=True)
    return weights | {name: buffer for name, buffer in engine.module.named_buffers() if name in kept}


def shard_state_dict(engine: Any, whole: dict[str, Tensor]) -> dict[str, Tensor]:
    """What this process holds of complete tensors by name, in the shapes of `local_state_dict`."""
    weights = dict(engine.module.named_parameters())
    found = {}
    for name, own in local_state_dict(engine).items():
        value = whole[name].to(own.device)
        found[name] = _part(value, own.numel()) if hasattr(weights.get(name), "ds_id") else value.clone()
    return found


def _part(whole: Tensor, numel: int) -> Tensor:
    """This process's part of a weight under ZeRO 3: flat, the last one padded with zeros."""
    padded = whole.new_zeros(numel * torch.distributed.get_world_size())
    padded[: whole.numel()] = whole.flatten()
    return padded.narrow(0, numel * torch.distributed.get_rank(), numel).clone()


@contextmanager
def use_weights(engine: Any, values: dict[str, Tensor]) -> Iterator[None]:
    """Within the block the engine holds `values` (of `local_state_dict`' names and shapes) instead of its own."""
    own = local_state_dict(engine)
    saved = {name: tensor.clone() for name, tensor in own.items()}
    for name, tensor in own.items():
        tensor.copy_(values[name])
    try:
        yield
    finally:
        for name, tensor in own.items():
            tensor.copy_(saved[name])


def full_state_dict(engine: Any) -> dict[str, Tensor]:
    """Weights and buffers by name, complete, as copies on the device. Every process must call it."""
    import deepspeed

    weights = list(engine.module.parameters())
    parted = [p for p in weights if hasattr(p, "ds_id")]
    with deepspeed.zero.GatheredParameters(parted, enabled=bool(parted)), torch.no_grad():
        return {name: t.detach().clone() for name, t in engine.module.state_dict().items()}


def optimizer_state_dict(engine: Any) -> dict[str, Tensor]:
    """AdamW's moments as `<moment>/<weight>`, complete; empty before the first step. Every process must call it."""
    from deepspeed.utils import safe_get_full_optimizer_state

    found: dict[str, Tensor] = {}
    if not _optimizer(engine).state:
        return found
    _link(engine)
    for name, weight in _trained(engine):
        for moment in MOMENTS:
            if hasattr(weight, "ds_id") or hasattr(weight, "_hp_mapping"):
                found[f"{moment}/{name}"] = safe_get_full_optimizer_state(weight, moment)
            else:
                found[f"{moment}/{name}"] = engine.optimizer.state[weight][moment]
    return found


def optimizer_steps(engine: Any) -> int:
    """Steps that AdamW has taken; those passed over do not count."""
    states = list(_optimizer(engine).state.values())
    return int(states[0]["step"]) if states else 0


def load_optimizer_state_dict(engine: Any, values: dict[str, Tensor], steps: int) -> None:
    """Put back what `optimizer_state_dict` and `optimizer_steps` gave, whatever the ZeRO stage and world size were then."""
    optimizer = _optimizer(engine)
    if not values:
        return
    for held in _held(engine):
        empty = {moment: torch.zeros_like(held) for moment in MOMENTS}
        optimizer.state[held] = {"step": torch.tensor(float(steps), device=held.device), **empty}
    _link(engine)
    from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

    for name, weight in _trained(engine):
        for moment in MOMENTS:
            value = values[f"{moment}/{name}"].to(weight.device)
            if hasattr(weight, "ds_id"):
                safe_set_local_optimizer_state(weight, _part(value, weight.ds_tensor.numel()), moment)
            elif hasattr(weight, "_hp_mapping"):
                safe_set_full_optimizer_state(weight, value, moment)
            else:
                optimizer.state[weight][moment].copy_(value)


def _link(engine: Any) -> None:
    """Have ZeRO 1 and 2 find the moments of every weight.

    DeepSpeed links weights to moments once, after the step of the first parameter group, when the other groups have
    no moments yet.
    """
    if hasattr(engine.optimizer, "_lazy_init_hp_params_optimizer_state"):
        engine.optimizer._hp_optimizer_states_linked = False
        engine.optimizer._lazy_init_hp_params_optimizer_state()


def _optimizer(engine: Any) -> torch.optim.Optimizer:
    """The torch optimizer, within DeepSpeed's or bare."""
    return getattr(engine.optimizer, "optimizer", engine.optimizer)


def _held(engine: Any) -> list[Tensor]:
    """The tensors that AdamW steps: the weights, or ZeRO's flat parts of them."""
    for name in ("single_partition_of_fp32_groups", "fp32_partitioned_groups_flat"):
        if hasattr(engine.optimizer, name):
            return list(getattr(engine.optimizer, name))
    return [weight for _, weight in _trained(engine)]


def _trained(engine: Any) -> list[tuple[str, Any]]:
    return [(name, weight) for name, weight in engine.module.named_parameters() if weight.requires_grad]
