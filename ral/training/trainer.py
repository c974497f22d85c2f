"""A whole training: its phases, epochs and checkpoints, and the weights that validation chooses."""

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
from ral.inference.score import Scorer, validation_scores
from ral.models import Network, build_model, classifier, reset_classifier
from ral.models.groups import parameter_groups
from ral.progress import Progress
from ral.training import engine as deepspeed_engine
from ral.training.batch_norm import synchronise_batch_norm
from ral.training.checkpoint import Checkpoints
from ral.training.ema import ModelEma
from ral.training.loop import DistributedContext, Phase, PhaseTrainer
from ral.training.metric_logger import MetricLogger
from ral.training.state import HISTORY, PreemptionFlag, TrainState, select_prefix

# What a checkpoint is made from: optimizer steps done, tensors on the CPU, facts (`Checkpoints.save`).
Snapshot = tuple[int, dict[str, Tensor], dict[str, Any]]


@dataclass
class TrainResult:
    """What a training gives."""

    state: TrainState
    """Its history, and the best weights of each kind."""
    chosen: str
    """The kind with the better validation macro AP: last or average."""
    scorer: Scorer
    network: Network


class Trainer:
    """One process's share of a training.

    Args:
        params: sections model, loss and train.
        dataset: the prepared data.
        place: this process.
        checkpoints: where to save and go on from.
        minutes: between two checkpoints.
        log: of the run; None beside rank 0.
        stop: whether someone asked for the end.
    """

    def __init__(
        self, params: TrainParams, dataset: Dataset, place: DistributedContext, checkpoints: Checkpoints, minutes: float,
        log: MetricLogger | None, stop: PreemptionFlag,
    ) -> None:  # fmt: skip
        self.params, self.config, self.dataset, self.place = params, params.train, dataset, place
        self.checkpoints, self.minutes, self.log, self.stop = checkpoints, minutes, log, stop
        self.val_rows = dataset.rows("val")
        self.state = TrainState()
        self.trainer: PhaseTrainer | None = None
        self.saved = time.monotonic()
        self.unsaved: Snapshot | None = None
        """Where training stood when scoring began, on rank 0: scoring is given up at once, and then this is saved."""

    def fit(self) -> TrainResult:
        """Train all phases, from the newest checkpoint if there is one.

        Raises:
            UserError: see `PhaseTrainer.train_epoch`; or no weights gave finite logits.
            SystemExit: someone asked for the end.
        """
        tensors = self._load()
        torch.manual_seed(self.config.seed)
        network = build_model(self.params.model, len(self.dataset.findings))
        half = torch.bfloat16 if self.config.precision == "bfloat16" else torch.float32
        scorer = Scorer(network, self.dataset, half, self.place.rank, self.place.world, self.place.device)
        phases = self._phases()
        while self.state.phase < len(phases):
            self._train_phase(phases[self.state.phase], network, scorer, tensors)
            tensors = {}
            self.state.phase, self.state.epoch, self.state.epochs_without_improvement = (
                self.state.phase + 1,
                0,
                0,
            )
            self.state.adam_steps = self.state.ema_steps = 0
        return TrainResult(self.state, self._chosen(), scorer, network)

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
        config, place, state = self.config, self.place, self.state
        model, frozen = self._model(phase, network, select_prefix(tensors, "weights"))
        if config.compile:
            model.compile()
        groups = parameter_groups(
            model, config.weight_decay, phase.learning_rate, self.params.model.layer_decay
        )
        engine = deepspeed_engine.start_engine(model, groups, config, place.world)
        deepspeed_engine.load_optimizer_state_dict(
            engine,
            {k: v for k, v in tensors.items() if k.split("/")[0] in deepspeed_engine.MOMENTS},
            state.adam_steps,
        )
        counted = place.rank == 0
        trainer = PhaseTrainer(
            engine,
            frozen,
            self.dataset,
            self.params,
            phase,
            place,
            state,
            self.stop,
            self._time_to_save,
            self.save,
        )
        self.trainer = trainer
        if config.ema_decay is not None:
            average = select_prefix(tensors, "ema")
            start = deepspeed_engine.local_state_dict(engine)
            trainer.ema = ModelEma(start, config.ema_decay)
            if average:
                trainer.ema.values = deepspeed_engine.shard_state_dict(engine, average)
                trainer.ema.steps = state.ema_steps
        images = int(trainer.ends[-1])
        total = (phase.epochs - state.epoch) * images - int(trainer.ends[state.step])
        with ExitStack() as stack:
            say: Callable[[str], None] = noop
            if counted:
                progress = stack.enter_context(Progress("training", total, "images"))
                trainer.show, say = progress.add, progress.say
            while state.epoch < phase.epochs:
                started, first = time.monotonic(), int(trainer.ends[state.step])
                self.stop.exit_immediately, self.unsaved = False, None
                trainer.train_epoch()
                seconds = time.monotonic() - started
                self.unsaved = self._snapshot()
                self.stop.exit_immediately = True  # what scoring gives is not saved before it is complete
                if self.stop.requested:
                    raise SystemExit(143)
                losses = list(state.losses)
                self._end_epoch(phase, trainer, scorer, say)
                if self.log is not None:
                    before = state.total_steps - trainer.steps
                    self.log.epoch(state.history[-1], images - first, seconds, losses, before)
                if config.patience is not None and state.epochs_without_improvement >= config.patience:
                    break
        engine.destroy()
        self.trainer = None

    def _model(
        self, phase: Phase, network: Network, weights: dict[str, Tensor]
    ) -> tuple[Network, list[nn.Module]]:
        """The network to train in a phase, and its frozen modules."""
        torch.manual_seed(self.config.seed)
        model = build_model(self.params.model, len(self.dataset.findings))
        frozen: list[nn.Module] = []
        if phase.name == "classifier":
            model.load_state_dict(self.state.best[self._chosen()].weights)
            reset_classifier(model, self.config.seed)
            head = classifier(model)
            learnt = {id(p) for p in head.parameters()}
            for p in model.parameters():
                p.requires_grad_(id(p) in learnt)
            own = set(head.modules())
            frozen = [m for m in model.modules() if not any(part in own for part in m.modules())]
        if weights:
            model.load_state_dict(weights)
        if self.place.world > 1:
            synchronise_batch_norm(model, self.place.device)
        return model, frozen

    def _end_epoch(
        self, phase: Phase, trainer: PhaseTrainer, scorer: Scorer, say: Callable[[str], None]
    ) -> None:
        """Score validation with the last and the averaged weights, and note what was best."""
        state, engine = self.state, trainer.engine
        row: dict[str, Any] = dict.fromkeys(HISTORY) | {
            "epoch": len(state.history) + 1,
            "phase": phase.name,
            "learning_rate": trainer.rate(trainer.steps - 1),
            "train_loss": float(np.mean(state.losses)) if state.losses else None,
            "skipped_steps": state.skipped_steps,
        }
        improved = False
        whole = {"last": deepspeed_engine.full_state_dict(engine)}
        if trainer.ema is not None:
            with deepspeed_engine.use_weights(engine, trainer.ema.values):
                whole["ema"] = deepspeed_engine.full_state_dict(engine)
        best_ap = max(best.ap for best in state.best.values())
        for kind, weights in whole.items():
            logits = scorer.score(weights, self.val_rows)
            prefix = "" if kind == "last" else "ema_"
            if not np.isfinite(logits).all():
                continue
            scores = validation_scores(trainer.targets[self.val_rows], logits)
            row |= {prefix + name: value for name, value in scores.items()}
            if scores["val_macro_ap"] > state.best[kind].ap:
                best = state.best[kind]
                best.ap, best.epoch = scores["val_macro_ap"], row["epoch"]
                best.weights = {name: tensor.cpu() for name, tensor in weights.items()}
            improved = improved or scores["val_macro_ap"] > best_ap
        state.history.append(
            {name: round(value, 8) if isinstance(value, float) else value for name, value in row.items()}
        )
        say(_line(state.history[-1], phase, self.config.epochs, self.dataset.metadata["phantom"]))
        state.epochs_without_improvement = 0 if improved else state.epochs_without_improvement + 1
        state.epoch, state.step, state.losses, state.skipped_steps = state.epoch + 1, 0, [], 0

    def _chosen(self) -> str:
        """The kind of weights with the best validation macro AP; the last ones where both are equal.

        Raises:
            UserError: no epoch gave finite logits.
        """
        best = self.state.best
        if not any(one.weights for one in best.values()):
            raise UserError(
                "No epoch gave finite logits on validation. Lower train.learning_rate.", kind="not_finite"
            )
        return "ema" if best["ema"].ap > best["last"].ap else "last"

    def _time_to_save(self) -> bool:
        return time.monotonic() - self.saved >= self.minutes * 60

    def save(self) -> None:
        """Write a checkpoint. Every process must call it at the same step; rank 0 writes."""
        snapshot = self._snapshot()
        if snapshot is not None:
            self.checkpoints.save(*snapshot)
        self.saved = time.monotonic()
        torch.distributed.barrier()

    def save_unsaved(self) -> None:
        """Write what would be lost if this process ended now, without the other processes."""
        self.stop.exit_immediately = False  # asked again, it still writes
        if self.unsaved is not None and self.checkpoints.newest_step() != self.unsaved[0]:
            self.checkpoints.save(*self.unsaved)

    def _snapshot(self) -> Snapshot | None:
        """Steps, tensors on the CPU and facts of a checkpoint, on rank 0. Every process must call it at the same step."""
        trainer, state = self.trainer, self.state
        assert trainer is not None
        tensors = {f"weights/{k}": v for k, v in deepspeed_engine.full_state_dict(trainer.engine).items()}
        tensors |= deepspeed_engine.optimizer_state_dict(trainer.engine)
        if trainer.ema is not None:
            state.ema_steps = trainer.ema.steps
            with deepspeed_engine.use_weights(trainer.engine, trainer.ema.values):
                average = deepspeed_engine.full_state_dict(trainer.engine)
            tensors |= {f"ema/{k}": v for k, v in average.items()}
        for kind, best in state.best.items():
            tensors |= {f"best_{kind}/{k}": v for k, v in best.weights.items()}
        if self.place.rank != 0:
            return None
        state.adam_steps = deepspeed_engine.optimizer_steps(trainer.engine)
        held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        return state.total_steps, held, state.to_dict()

    def _load(self) -> dict[str, Tensor]:
        """Set the state from the newest checkpoint; its tensors, or none."""
        say: Callable[[str], None] = print if self.place.rank == 0 else noop
        found = self.checkpoints.load_latest(say)
        if found is None:
            return {}
        tensors, facts = found
        self.state = TrainState.of(facts, tensors)
        say(f"going on from the checkpoint after {self.state.total_steps:,} steps: {self.checkpoints.folder}")
        return tensors


def noop(*_: object) -> None:
    """Says nothing: the processes beside rank 0."""


def _line(row: dict[str, Any], phase: Phase, epochs: int, phantom: bool) -> str:
    """An epoch as a line for people."""

    def shown(name: str) -> str:
        return "not finite" if row[name] is None else f"{row[name]:.4f}"

    kind = "PHANTOM images, " if phantom else ""
    where = f"epoch {row['epoch']:3d}" + (f" of {epochs}" if phase.name == "network" else f" ({phase.name})")
    loss = "no finite loss" if row["train_loss"] is None else f"loss {row['train_loss']:.5f}"
    text = f"{kind}{where}: {loss}, validation macro AP {shown('val_macro_ap')}, AUROC {shown('val_macro_auroc')}"
    if row["ema_val_macro_ap"] is not None:
        text += f"; of the averaged weights {shown('ema_val_macro_ap')}, {shown('ema_val_macro_auroc')}"
    if row["skipped_steps"]:
        text += f"; {row['skipped_steps']} steps passed over, their loss or gradient not finite"
    return text
