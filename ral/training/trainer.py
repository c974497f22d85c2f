"""A complete training run: phases, epochs, checkpoints, and selection of the best weights on validation."""

import logging
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ral.config.train import TrainParams
from ral.data.dataset import Dataset
from ral.errors import UserError
from ral.inference.score import Scorer, estimable_findings, validation_scores
from ral.models import Network, build_model, classifier, reset_classifier
from ral.models.groups import parameter_groups
from ral.progress import Progress
from ral.training import engine as deepspeed_engine
from ral.training.backend import compile_works
from ral.training.batch_norm import synchronise_batch_norm
from ral.training.checkpoint import Checkpoints
from ral.training.ema import ModelEma
from ral.training.loop import DistributedContext, Phase, PhaseTrainer
from ral.training.metric_logger import MetricLogger
from ral.training.state import HISTORY, PreemptionFlag, TrainState, select_prefix

logger = logging.getLogger(__name__)

# The arguments of `Checkpoints.save`: completed optimizer steps, tensors on the CPU, state.
Snapshot = tuple[int, dict[str, Tensor], dict[str, Any]]


@dataclass
class TrainResult:
    """Result of a training run."""

    state: TrainState
    """Final state, with the history and the best weights of each kind."""
    best_kind: str
    """The kind of weights with the better validation macro AP: last or ema."""
    scorer: Scorer
    network: Network


class Trainer:
    """Runs a training, on one rank.

    Args:
        params: sections model, loss and train.
        dataset: the prepared data.
        context: rank, world size and device.
        checkpoints: where to save checkpoints and resume from.
        minutes: time between two checkpoints.
        metric_logger: writes the run's metrics; None on ranks other than 0.
        stop: set when training is to stop.
        min_positives: evaluate.min_positives: patients with and without a finding that validation metrics need.

    Raises:
        UserError: no finding has both in validation.
    """

    def __init__(
        self, params: TrainParams, dataset: Dataset, context: DistributedContext, checkpoints: Checkpoints,
        minutes: float, metric_logger: MetricLogger | None, stop: PreemptionFlag, min_positives: int,
    ) -> None:  # fmt: skip
        self.params, self.config, self.dataset, self.context = params, params.train, dataset, context
        self.checkpoints, self.minutes, self.stop = checkpoints, minutes, stop
        self.metric_logger = metric_logger
        self.val_rows = dataset.rows("val")
        self.val_targets = dataset.targets()[self.val_rows]
        patients = dataset.studies["patient_id"].to_numpy()[self.val_rows]
        self.val_findings = estimable_findings(self.val_targets, patients, min_positives)
        """The findings that the validation metrics are averaged over; boolean [findings]."""
        self.state = TrainState()
        self.compile = False
        """Whether the network is compiled: train.compile, where it works."""
        self.phase_trainer: PhaseTrainer | None = None
        self.last_save = time.monotonic()
        self.unsaved_snapshot: Snapshot | None = None
        """On rank 0, the state before validation started. If validation is interrupted, this is saved."""

    def fit(self) -> TrainResult:
        """Train all phases, resuming from the newest checkpoint if there is one.

        Raises:
            UserError: see `PhaseTrainer.train_epoch`; or no epoch gave finite logits.
            SystemExit: a stop was requested.
        """
        tensors = self._load()
        number, of = int(self.val_findings.sum()), len(self.val_findings)
        if number < of and self.context.rank == 0:
            logger.info(
                "Validation metrics are means over %d of %d findings. The others have too few patients with or without "
                "them in validation (evaluate.min_positives, split.val).",
                number, of,
            )  # fmt: skip
        torch.manual_seed(self.config.seed)
        network = build_model(self.params.model, len(self.dataset.findings))
        network.use_bfloat16 = self.config.precision == "bfloat16"
        context = self.context
        self.compile = self.config.compile and compile_works(context.device)
        scorer = Scorer(network, self.dataset, self.compile, context.rank, context.world_size, context.device)
        phases = self._phases()
        while self.state.phase < len(phases):
            self._train_phase(phases[self.state.phase], network, scorer, tensors)
            tensors = {}
            self.state.phase += 1
            self.state.epoch = self.state.epochs_without_improvement = 0
            self.state.adam_steps = self.state.ema_steps = 0
        return TrainResult(self.state, self._best_kind(), scorer, network)

    def _phases(self) -> list[Phase]:
        config = self.config
        phases = [Phase("network", config.epochs, config.learning_rate, config.sampler)]
        if config.classifier is not None:
            second = config.classifier
            phases.append(Phase("classifier", second.epochs, second.learning_rate, second.sampler))
        return phases

    def _train_phase(
        self, phase: Phase, network: Network, scorer: Scorer, tensors: dict[str, Tensor]
    ) -> None:
        config, context, state = self.config, self.context, self.state
        model, frozen = self._model(phase, network, select_prefix(tensors, "weights"))
        if self.compile:
            model.compile(dynamic=False)  # batches have n or n - 1 images: two static graphs
        groups = parameter_groups(
            model, config.weight_decay, phase.learning_rate, self.params.model.layer_decay
        )
        engine = deepspeed_engine.start_engine(model, groups, config, context.world_size)
        deepspeed_engine.load_optimizer_state_dict(
            engine,
            {k: v for k, v in tensors.items() if k.split("/")[0] in deepspeed_engine.MOMENTS},
            state.adam_steps,
        )
        phase_trainer = PhaseTrainer(
            engine,
            frozen,
            self.dataset,
            self.params,
            phase,
            context,
            state,
            self.stop,
            self._checkpoint_due,
            self.save,
        )
        self.phase_trainer = phase_trainer
        if config.ema_decay is not None:
            ema_weights = select_prefix(tensors, "ema")
            ema = ModelEma(deepspeed_engine.local_state_dict(engine), config.ema_decay)
            if ema_weights:
                ema.load(deepspeed_engine.shard_state_dict(engine, ema_weights), state.ema_steps)
            phase_trainer.ema = ema
        offsets = phase_trainer.batch_offsets
        images = int(offsets[-1])
        total = (phase.epochs - state.epoch) * images - int(offsets[state.step])
        with ExitStack() as stack:
            log: Callable[[str], None] = noop
            if context.rank == 0:
                progress = stack.enter_context(Progress("training", total, "images"))
                phase_trainer.on_step, log = progress.add, logger.info
            while state.epoch < phase.epochs:
                started, first = time.monotonic(), int(offsets[state.step])
                self.stop.exit_immediately, self.unsaved_snapshot = False, None
                phase_trainer.train_epoch()
                seconds = time.monotonic() - started
                self.unsaved_snapshot = self._snapshot()
                self.stop.exit_immediately = True  # an interrupted validation leaves nothing to save
                if self.stop.requested:
                    raise SystemExit(143)
                losses = list(state.losses)
                self._end_epoch(phase, phase_trainer, scorer, log)
                if self.metric_logger is not None:
                    first_step = state.total_steps - phase_trainer.steps
                    self.metric_logger.epoch(state.history[-1], images - first, seconds, losses, first_step)
                if config.patience is not None and state.epochs_without_improvement >= config.patience:
                    break
        engine.destroy()
        self.phase_trainer = None

    def _model(
        self, phase: Phase, network: Network, weights: dict[str, Tensor]
    ) -> tuple[Network, list[nn.Module]]:
        """The network to train in a phase, and the modules that are frozen."""
        torch.manual_seed(self.config.seed)
        model = build_model(self.params.model, len(self.dataset.findings))
        model.use_bfloat16 = self.config.precision == "bfloat16"
        if self.context.world_size > 1:
            synchronise_batch_norm(model)
        frozen: list[nn.Module] = []
        if phase.name == "classifier":
            model.load_state_dict(self.state.best[self._best_kind()].weights)
            reset_classifier(model, self.config.seed)
            head = classifier(model)
            head_parameters = {id(p) for p in head.parameters()}
            for p in model.parameters():
                p.requires_grad_(id(p) in head_parameters)
            head_modules = set(head.modules())
            frozen = [m for m in model.modules() if not any(part in head_modules for part in m.modules())]
        if weights:
            model.load_state_dict(weights)
        return model, frozen

    def _end_epoch(
        self, phase: Phase, phase_trainer: PhaseTrainer, scorer: Scorer, log: Callable[[str], None]
    ) -> None:
        """Validate the last weights and the EMA, and update the best weights of each kind."""
        state, engine = self.state, phase_trainer.engine
        row: dict[str, Any] = dict.fromkeys(HISTORY) | {
            "epoch": len(state.history) + 1,
            "phase": phase.name,
            "learning_rate": phase_trainer.rate(phase_trainer.steps - 1),
            "train_loss": float(np.mean(state.losses)) if state.losses else None,
            "skipped_steps": state.skipped_steps,
        }
        improved = False
        candidates = {"last": deepspeed_engine.full_state_dict(engine)}
        if phase_trainer.ema is not None:
            with deepspeed_engine.use_weights(engine, phase_trainer.ema.values):
                candidates["ema"] = deepspeed_engine.full_state_dict(engine)
        best_ap = max(best.ap for best in state.best.values())
        for kind, weights in candidates.items():
            logits = scorer.score(weights, self.val_rows)
            prefix = "" if kind == "last" else "ema_"
            if not np.isfinite(logits).all():
                continue
            measured = self.val_findings
            scores = validation_scores(self.val_targets[:, measured], logits[:, measured])
            row |= {prefix + name: value for name, value in scores.items()}
            if scores["val_macro_ap"] > state.best[kind].ap:
                best = state.best[kind]
                best.ap, best.epoch = scores["val_macro_ap"], row["epoch"]
                best.weights = weights
            improved = improved or scores["val_macro_ap"] > best_ap
        state.history.append(
            {name: round(value, 8) if isinstance(value, float) else value for name, value in row.items()}
        )
        log(_epoch_line(state.history[-1], phase, self.config.epochs, self.dataset.metadata["phantom"]))
        state.epochs_without_improvement = 0 if improved else state.epochs_without_improvement + 1
        state.epoch, state.step, state.losses, state.skipped_steps = state.epoch + 1, 0, [], 0

    def _best_kind(self) -> str:
        """The kind of weights with the best validation macro AP; "last" if both are equal.

        Raises:
            UserError: no epoch gave finite logits.
        """
        best = self.state.best
        if not any(checkpoint.weights for checkpoint in best.values()):
            raise UserError(
                "No epoch gave finite validation logits. Lower train.learning_rate.", kind="not_finite"
            )
        return "ema" if best["ema"].ap > best["last"].ap else "last"

    def _checkpoint_due(self) -> bool:
        return time.monotonic() - self.last_save >= self.minutes * 60

    def save(self) -> None:
        """Write a checkpoint. All ranks must call it at the same step; rank 0 writes."""
        snapshot = self._snapshot()
        if snapshot is not None:
            self.checkpoints.save(*snapshot)
        self.last_save = time.monotonic()
        torch.distributed.barrier()

    def save_unsaved(self) -> None:
        """Save the snapshot taken before validation, if any; needs no other rank."""
        self.stop.exit_immediately = False  # a second signal must not interrupt the write
        if self.unsaved_snapshot is not None and self.checkpoints.newest_step() != self.unsaved_snapshot[0]:
            self.checkpoints.save(*self.unsaved_snapshot)

    def _snapshot(self) -> Snapshot | None:
        """The content of a checkpoint, on rank 0. All ranks must call it at the same step."""
        phase_trainer, state = self.phase_trainer, self.state
        assert phase_trainer is not None
        engine = phase_trainer.engine
        keep = self.context.rank == 0
        tensors = {f"weights/{k}": v for k, v in deepspeed_engine.full_state_dict(engine, keep).items()}
        tensors |= deepspeed_engine.optimizer_state_dict(engine, keep)
        if phase_trainer.ema is not None:
            state.ema_steps = phase_trainer.ema.steps
            with deepspeed_engine.use_weights(engine, phase_trainer.ema.values):
                ema_weights = deepspeed_engine.full_state_dict(engine, keep)
            tensors |= {f"ema/{k}": v for k, v in ema_weights.items()}
        for kind, best in state.best.items():
            tensors |= {f"best_{kind}/{k}": v for k, v in best.weights.items()}
        if not keep:
            return None
        state.adam_steps = deepspeed_engine.optimizer_steps(engine)
        contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
        return state.total_steps, contiguous, state.to_dict()

    def _load(self) -> dict[str, Tensor]:
        """Restore the state from the newest checkpoint and return its tensors; empty without a checkpoint."""
        log: Callable[[str], None] = logger.info if self.context.rank == 0 else noop
        # Rank 0 decides: the file system of another machine may not list the newest one yet.
        step = self.checkpoints.newest_valid_step(log) if self.context.rank == 0 else None
        chosen = torch.full((1,), -1 if step is None else step, device=self.context.device)
        torch.distributed.broadcast(chosen, 0)
        if int(chosen) < 0:
            return {}
        tensors, state = self.checkpoints.load(int(chosen))
        self.state = TrainState.from_dict(state, tensors)
        log(f"Resuming from checkpoint at step {self.state.total_steps}: {self.checkpoints.folder}")
        return tensors


def noop(*_: object) -> None:
    """Log nothing: used on ranks other than 0."""


def _epoch_line(row: dict[str, Any], phase: Phase, epochs: int, phantom: bool) -> str:
    """The log line of an epoch."""

    def format_metric(name: str) -> str:
        return "not finite" if row[name] is None else f"{row[name]:.4f}"

    prefix = "PHANTOM DATA, " if phantom else ""
    epoch = f"epoch {row['epoch']:3d}" + (f" of {epochs}" if phase.name == "network" else f" ({phase.name})")
    loss = "loss not finite" if row["train_loss"] is None else f"loss {row['train_loss']:.5f}"
    ap, auroc = format_metric("val_macro_ap"), format_metric("val_macro_auroc")
    text = f"{prefix}{epoch}: {loss}, validation macro AP {ap}, AUROC {auroc}"
    if row["ema_val_macro_ap"] is not None:
        ap, auroc = format_metric("ema_val_macro_ap"), format_metric("ema_val_macro_auroc")
        text += f"; EMA AP {ap}, AUROC {auroc}"
    if row["skipped_steps"]:
        text += f"; {row['skipped_steps']} steps skipped: non-finite loss or gradient"
    return text
