"""The parts of a phase: network, engine, batches, loss, moving average; made anew for each phase."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ral.config.train import TrainParams
from ral.data.dataset import Dataset
from ral.models import Network, build_model, classifier, reset_classifier
from ral.models.groups import parameter_groups
from ral.training.adversarial import Adversary
from ral.training.batch_loss import BatchLoss
from ral.training.batch_norm import BufferBackup, synchronise_batch_norm
from ral.training.batches import Batches
from ral.training.distributed import DistributedContext
from ral.training.ema import ModelEma
from ral.training.engine import Engine
from ral.training.optimizer import MOMENTS
from ral.training.plan import Phase
from ral.training.state import TrainState, select_prefix


@dataclass(frozen=True)
class PhaseParts:
    """What trains a phase."""

    phase: Phase
    engine: Engine
    frozen: tuple[nn.Module, ...]
    """Modules that are not trained; their batch statistics are not updated either."""
    batches: Batches
    loss: BatchLoss
    buffer_backup: BufferBackup
    ema: ModelEma | None
    adversary: Adversary | None
    """Attacks the images of each micro-batch; None: ordinary training."""


def build_network(params: TrainParams, findings: int) -> Network:
    """The network as it is initialised from train.seed, on the CPU.

    Raises:
        UserError: see `ral.models.build_model`.
    """
    torch.manual_seed(params.train.seed)
    network = build_model(params.model, findings)
    network.use_bfloat16 = params.train.precision == "bfloat16"
    return network


def start_phase(
    phase: Phase,
    params: TrainParams,
    dataset: Dataset,
    context: DistributedContext,
    state: TrainState,
    tensors: Mapping[str, Tensor],
) -> PhaseParts:
    """The parts of a phase, at its beginning or as a checkpoint has them.

    Args:
        phase: what is trained.
        params: sections model, loss and train.
        dataset: the prepared data.
        context: rank, world size and device.
        state: has the best weights of the phase before, and the numbers of steps so far.
        tensors: of the checkpoint that this phase continues from; empty at its beginning.

    Raises:
        UserError: see `BatchLoss`, `Batches`, `Engine`, `parameter_groups` and `Adversary`.
    """
    config = params.train
    loss = BatchLoss(params, dataset, context.device)
    loss.load_state_dict(select_prefix(tensors, "loss"))
    batches = Batches(phase, params, dataset, loss, context)
    network = build_network(params, len(dataset.findings))
    if context.world_size > 1:
        synchronise_batch_norm(network)
    frozen = _freeze(network, state.best_weights(), config.seed) if phase.classifier_only else ()
    if weights := select_prefix(tensors, "weights"):
        network.load_state_dict(weights)
    if config.compile:
        network.compile(dynamic=False)  # batches have n or n - 1 images: two static graphs
    groups = parameter_groups(network, config.weight_decay, phase.learning_rate, params.model.layer_decay)
    engine = Engine(network, groups, config, context)
    moments = {name: tensor for name, tensor in tensors.items() if name.split("/")[0] in MOMENTS}
    engine.load_optimizer_state_dict(moments, state.adam_steps)
    buffer_backup = BufferBackup(engine.module)  # replaces the buffers that the moving average follows
    ema = _start_ema(engine, config.ema_decay, select_prefix(tensors, "ema"), state.ema_steps)
    adversary = None
    if config.adversarial is not None and config.adversarial.eps > 0:
        adversary = Adversary(config.adversarial, engine.module, loss, dataset.info)
    return PhaseParts(phase, engine, frozen, batches, loss, buffer_backup, ema, adversary)


def _freeze(network: Network, weights: Mapping[str, Tensor], seed: int) -> tuple[nn.Module, ...]:
    """Load weights, reset the classifier and freeze everything else; returns the modules without a trained weight."""
    network.load_state_dict(weights)
    reset_classifier(network, seed)
    head = classifier(network)
    head_parameters = {id(p) for p in head.parameters()}
    for p in network.parameters():
        p.requires_grad_(id(p) in head_parameters)
    head_modules = set(head.modules())
    return tuple(m for m in network.modules() if not any(part in head_modules for part in m.modules()))


def _start_ema(
    engine: Engine, decay: float | None, weights: Mapping[str, Tensor], steps: int
) -> ModelEma | None:
    """The moving average of the engine's weights, continued from `weights` if there are any; None without a decay."""
    if decay is None:
        return None
    ema = ModelEma(engine.local_state_dict(), decay)
    if weights:
        ema.load(engine.shard_state_dict(weights), steps)
    return ema
