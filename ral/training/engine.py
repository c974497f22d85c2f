"""The DeepSpeed engine, from one CPU process to many GPUs, and its state as plain named tensors.

All state is float32 (half precision comes from autocast), so weights are identical in every ZeRO stage, and
state saved with one stage and world size can be loaded with another.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ral.config.train import TrainConfig
from ral.errors import UserError
from ral.models import Network
from ral.models.groups import ParameterGroup
from ral.training.distributed import DistributedContext, limit_waiting
from ral.training.optimizer import MOMENTS, AdamW


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


class Engine:
    """A network and its AdamW inside DeepSpeed, which averages gradients over ranks and accumulates them.

    All that the project asks of DeepSpeed, which has no type hints, is in this class.

    Args:
        model: on the CPU or the device; it is moved.
        groups: parameter groups, see `ral.models.groups.parameter_groups`.
        config: the section train.
        context: rank, world size and device.

    Raises:
        UserError: the global batch cannot be split evenly, or DeepSpeed rejects train.deepspeed_config.
    """

    def __init__(
        self, model: Network, groups: list[ParameterGroup], config: TrainConfig, context: DistributedContext
    ) -> None:
        import deepspeed

        self.context = context
        optimizer_clips = config.zero_stage == 0
        optimizer = AdamW(groups, config.learning_rate, config.clip_norm if optimizer_clips else None)
        try:
            self.deepspeed, *_ = deepspeed.initialize(
                model=model, optimizer=optimizer, config=_settings(config, context.world_size)
            )
        except (ValueError, AssertionError) as error:
            if config.deepspeed_config:
                raise UserError(f"train.deepspeed_config: rejected by DeepSpeed: {error}") from None
            raise
        limit_waiting()
        if config.zero_stage == 0:  # other stages keep weights in flat buffers of their own layout
            self.deepspeed.module.to(memory_format=torch.channels_last)
            # It would copy every gradient to a buffer and back.
            self.deepspeed.enable_backward_allreduce = context.world_size > 1

    # A step.

    @property
    def module(self) -> Network:
        """The network; under ZeRO 3 its weights are empty outside a pass."""
        network: Network = self.deepspeed.module
        return network

    def train_mode(self) -> None:
        """Set the network to training mode."""
        self.deepspeed.train()

    def forward(self, images: Tensor) -> Tensor:
        """Raw logits [images, findings] of a micro-batch."""
        logits: Tensor = self.deepspeed(images)
        return logits

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradient of a micro-batch's loss, divided by the number of micro-batches and ranks."""
        self.deepspeed.backward(loss)

    def step(self) -> None:
        """End a micro-batch; after the last one of an optimizer step, update the weights."""
        self.deepspeed.step()

    def set_learning_rate(self, rate: float) -> None:
        """Set the learning rate of the next step, scaled by each group's `lr_scale` (layer-wise decay)."""
        for group in self.deepspeed.optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)

    def step_was_skipped(self) -> Tensor:
        """1 if the last step was skipped because of non-finite gradients, else 0; float32 scalar on the device."""
        optimizer = self.deepspeed.optimizer
        if hasattr(optimizer, "overflow"):
            return torch.full((), float(optimizer.overflow), device=self.context.device)
        skipped: Tensor = optimizer.found_inf
        return skipped

    def close(self) -> None:
        """Release DeepSpeed's buffers and hooks."""
        self.deepspeed.destroy()

    # Weights and buffers.

    def local_state_dict(self) -> dict[str, Tensor]:
        """Weights and buffers by name as held by this rank: its shards under ZeRO 3, otherwise complete."""
        weights = {name: getattr(p, "ds_tensor", p).data for name, p in self.module.named_parameters()}
        persistent = self.module.state_dict(keep_vars=True)
        return weights | {name: buffer for name, buffer in self.module.named_buffers() if name in persistent}

    def shard_state_dict(self, full: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """This rank's part of complete tensors, in the names and shapes of `local_state_dict`."""
        weights = dict(self.module.named_parameters())
        shards = {}
        for name, local in self.local_state_dict().items():
            value = full[name].to(local.device)
            sharded = hasattr(weights.get(name), "ds_id")
            shards[name] = self._shard(value, local.numel()) if sharded else value.clone()
        return shards

    def _shard(self, full: Tensor, numel: int) -> Tensor:
        """This rank's shard of a weight under ZeRO 3: flat, the last one zero-padded."""
        padded = full.new_zeros(numel * self.context.world_size)
        padded[: full.numel()] = full.flatten()
        return padded.narrow(0, numel * self.context.rank, numel).clone()

    @contextmanager
    def use_weights(self, values: Mapping[str, Tensor]) -> Iterator[None]:
        """Inside the block, the engine holds `values` (names and shapes as `local_state_dict`) instead of its own
        weights.
        """
        local = self.local_state_dict()
        saved = {name: tensor.clone() for name, tensor in local.items()}
        for name, tensor in local.items():
            tensor.copy_(values[name])
        try:
            yield
        finally:
            for name, tensor in local.items():
                tensor.copy_(saved[name])

    def full_state_dict(self, keep: bool = True) -> dict[str, Tensor]:
        """Complete weights and buffers by name, as copies on the CPU. All ranks must call it.

        Under ZeRO 3 one weight at a time is gathered, so that the GPU never holds the whole network.

        Args:
            keep: False on ranks that only take part in the gathering; their dictionary is empty.
        """
        import deepspeed

        full = {}
        for name, tensor in self.module.state_dict(keep_vars=True).items():
            sharded = hasattr(tensor, "ds_id")
            with deepspeed.zero.GatheredParameters([tensor], enabled=sharded):
                if keep:
                    full[name] = tensor.detach().to("cpu", copy=True)
        return full

    # AdamW's state.

    def optimizer_state_dict(self, keep: bool = True) -> dict[str, Tensor]:
        """AdamW's complete moments as `<moment>/<weight>`, on the CPU; empty before the first step.

        All ranks must call it; `keep` as in `full_state_dict`.
        """
        from deepspeed.utils import safe_get_full_optimizer_state

        moments: dict[str, Tensor] = {}
        optimizer = self._torch_optimizer()
        if not optimizer.state:
            return moments
        self._link_moments()
        for name, weight in self._trainable():
            for moment in MOMENTS:
                if hasattr(weight, "ds_id") or hasattr(weight, "_hp_mapping"):
                    value = safe_get_full_optimizer_state(weight, moment)
                else:
                    value = optimizer.state[weight][moment]
                if keep:
                    moments[f"{moment}/{name}"] = value.cpu()
        return moments

    def optimizer_steps(self) -> int:
        """Number of AdamW steps taken; skipped steps are not counted."""
        states = list(self._torch_optimizer().state.values())
        return int(states[0]["step"]) if states else 0

    def load_optimizer_state_dict(self, values: Mapping[str, Tensor], steps: int) -> None:
        """Restore `optimizer_state_dict` and `optimizer_steps`, saved with any ZeRO stage and world size."""
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        if not values:
            return
        state = self._torch_optimizer().state
        for tensor in self._stepped_tensors():
            empty = {moment: torch.zeros_like(tensor) for moment in MOMENTS}
            state[tensor] = {"step": torch.tensor(float(steps), device=tensor.device), **empty}
        self._link_moments()
        for name, weight in self._trainable():
            for moment in MOMENTS:
                value = values[f"{moment}/{name}"].to(weight.device)
                if hasattr(weight, "ds_id"):
                    shard = self._shard(value, weight.ds_tensor.numel())
                    safe_set_local_optimizer_state(weight, shard, moment)
                elif hasattr(weight, "_hp_mapping"):
                    safe_set_full_optimizer_state(weight, value, moment)
                else:
                    state[weight][moment].copy_(value)

    def _link_moments(self) -> None:
        """Link every weight to its moments under ZeRO 1 and 2.

        DeepSpeed does this only once, after the first parameter group's step, when the other groups have no
        moments yet.
        """
        optimizer = self.deepspeed.optimizer
        if hasattr(optimizer, "_lazy_init_hp_params_optimizer_state"):
            optimizer._hp_optimizer_states_linked = False
            optimizer._lazy_init_hp_params_optimizer_state()

    def _torch_optimizer(self) -> torch.optim.Optimizer:
        """The torch optimizer, unwrapped from DeepSpeed's if necessary."""
        optimizer: torch.optim.Optimizer = getattr(
            self.deepspeed.optimizer, "optimizer", self.deepspeed.optimizer
        )
        return optimizer

    def _stepped_tensors(self) -> list[Tensor]:
        """The tensors that AdamW updates: the weights, or their flat partitions under ZeRO."""
        for name in ("single_partition_of_fp32_groups", "fp32_partitioned_groups_flat"):
            if hasattr(self.deepspeed.optimizer, name):
                return list(getattr(self.deepspeed.optimizer, name))
        return [weight for _, weight in self._trainable()]

    def _trainable(self) -> list[tuple[str, Any]]:
        """Weights that are trained, by name; DeepSpeed adds attributes to them that torch does not declare."""
        return [(name, weight) for name, weight in self.module.named_parameters() if weight.requires_grad]


def _settings(config: TrainConfig, world_size: int) -> dict[str, Any]:
    """DeepSpeed's configuration: train.deepspeed_config, and what other parameters decide."""
    untimed = {"timers": {"throughput": {"enabled": False}}}  # the timer waits for the GPU twice per step
    fixed = {
        "train_batch_size": config.batch_size,
        "train_micro_batch_size_per_gpu": config.batch_size // world_size // accumulation(config, world_size),
        "gradient_clipping": 0.0 if config.zero_stage == 0 else config.clip_norm,
        "zero_optimization": {"stage": config.zero_stage},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }
    return merge(merge(untimed, config.deepspeed_config), fixed)


def merge(user: Mapping[str, Any], fixed: Mapping[str, Any]) -> dict[str, Any]:
    """Merge two nested configurations. Only sections occur in both, with disjoint keys (`ral.config.train`
    checks it).
    """
    merged = dict(user)
    for name, value in fixed.items():
        merged[name] = merge(user.get(name, {}), value) if isinstance(value, dict) else value
    return merged
