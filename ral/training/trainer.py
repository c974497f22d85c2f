"""A training, as one rank runs it: phases, epochs, steps, validation, checkpoints.

Read it from top to bottom: `train` calls `train_epoch`, that `train_step`, that `forward_backward`.
"""

import collections
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ral.config.train import TrainParams
from ral.data.dataset import Dataset
from ral.errors import UserError
from ral.inference.prefetch import MicroBatch
from ral.models.inputs import channels_last
from ral.progress import Progress
from ral.training import plan
from ral.training.augment import augmented
from ral.training.bank_phase import refit
from ral.training.batch_loss import GlobalLoss
from ral.training.batch_norm import unchanged_buffers
from ral.training.checkpoint import Checkpoints, Snapshot
from ral.training.distributed import DistributedContext
from ral.training.memory import explain_out_of_memory
from ral.training.metric_logger import MetricLogger
from ral.training.mixup import mixed
from ral.training.phase import PhaseParts, start_phase
from ral.training.state import STOPPED, EpochRecord, PreemptionFlag, TrainState, WeightsKind
from ral.training.validation import Validator

logger = logging.getLogger(__name__)

# Steps between two status texts of the progress line.
STATUS_STEPS = 20


class StepStatus(NamedTuple):
    """Status of an optimizer step, summed over all ranks."""

    epoch: int
    step: int
    reduced: Tensor
    """[loss, skipped, stop requested, checkpoint due], on the CPU once `ready` is done."""
    ready: torch.cuda.Event | None


class Trainer:
    """Runs a training, on one rank.

    Args:
        params: sections model, loss and train.
        dataset: the prepared data.
        context: rank, world size and device.
        checkpoints: where to save checkpoints and resume from.
        validator: measures weights on the validation images.
        metric_logger: writes the run's metrics; None on ranks other than 0.
        stop: set when training is to stop.
    """

    parts: PhaseParts
    """What trains the current phase; set by `start_phase`."""

    def __init__(
        self, params: TrainParams, dataset: Dataset, context: DistributedContext, checkpoints: Checkpoints,
        validator: Validator, metric_logger: MetricLogger | None, stop: PreemptionFlag,
    ) -> None:  # fmt: skip
        self.params, self.dataset, self.context = params, dataset, context
        self.checkpoints, self.validator, self.metric_logger, self.stop = (
            checkpoints, validator, metric_logger, stop
        )  # fmt: skip
        self._statistics = dataset.info
        self.state = TrainState()
        self.phases = plan.phases(params.train)
        self.unsaved_snapshot: Snapshot | None = None
        """On rank 0, the state before validation started. If validation is interrupted, this is saved."""
        self._statuses: collections.deque[StepStatus] = collections.deque()
        self._progress: Progress | None = None
        self._log: Callable[[str], None] = logger.info if context.rank == 0 else _silent

    def train(self) -> TrainState:
        """Train all phases, resuming from the newest checkpoint if there is one.

        Returns:
            The final state, with the history and the best weights of each kind.

        Raises:
            UserError: see `train_epoch` and `start_phase`; or no epoch gave finite logits.
            SystemExit: a stop was requested.
        """
        tensors = self.load_checkpoint()
        while self.state.phase < len(self.phases):
            if self.phases[self.state.phase].features == "bank":
                self._refit()
                continue
            self.start_phase(tensors)
            with self._show_progress():
                while not self._phase_is_over():
                    self._train_and_validate()
            self.parts.engine.close()
            del self.parts  # frees its memory for the next phase
            self.state.end_phase()
            tensors = {}
        return self.state

    def start_phase(self, tensors: dict[str, Tensor]) -> None:
        """Make the network, engine and batches of the current phase, as the tensors of a checkpoint have them."""
        phase = self.phases[self.state.phase]
        self.parts = start_phase(phase, self.params, self.dataset, self.context, self.state, tensors)

    def _refit(self) -> None:
        """The second phase on stored features: one row of the history."""
        state = self.state
        done = refit(self.params, self.dataset, self.validator.scorer, state)
        self.validator.end_epoch(state, done.record, {"last": done.weights})
        self._log(done.record.log_line(self.params.train.epochs, self.dataset.info.phantom))
        if self.metric_logger is not None:
            self.metric_logger.epoch(done.record, done.images, done.seconds, [], state.total_steps)
        state.end_phase()

    def _phase_is_over(self) -> bool:
        patience, state = self.params.train.patience, self.state
        tired = patience is not None and state.epochs_without_improvement >= patience
        return state.epoch >= self.parts.phase.epochs or tired

    def _train_and_validate(self) -> None:
        """One epoch, or the rest of it; then its validation."""
        state, batches = self.state, self.parts.batches
        self.stop.exit_immediately, self.unsaved_snapshot = False, None
        images, started = batches.images(state.step), time.monotonic()
        self.train_epoch()
        seconds = time.monotonic() - started
        self.unsaved_snapshot = self._snapshot()
        self.stop.exit_immediately = True  # an interrupted validation leaves nothing to save
        if self.stop.requested:
            raise SystemExit(STOPPED)
        losses, first_step = state.losses, state.total_steps - batches.steps
        record = self.validate()
        if self.metric_logger is not None:
            self.metric_logger.epoch(record, images, seconds, losses, first_step)

    def train_epoch(self) -> None:
        """Train the rest of the current epoch.

        Raises:
            UserError: too many consecutive steps were skipped, or memory ran out.
            SystemExit: a stop was requested; a checkpoint was written.
        """
        parts, epoch, first = self.parts, self.state.epoch, self.state.step
        parts.engine.train_mode()
        for module in parts.frozen:
            module.eval()
        parts.loss.set_epoch(epoch)
        parts.engine.set_learning_rate(parts.batches.learning_rate(epoch, first))
        parts.buffer_backup.save()
        with parts.batches.prefetch(epoch, first) as micro_batches:
            for step in range(first, parts.batches.steps):
                self.train_step(step, islice(micro_batches, parts.batches.accumulation))
        self._read_statuses(0)

    def train_step(self, step: int, micro_batches: Iterable[MicroBatch]) -> None:
        """One optimizer step, from this rank's micro-batches of it."""
        loss = torch.zeros((), device=self.context.device)
        whole = None
        if not self.parts.loss.loss.separable and self.parts.batches.accumulation > 1:
            micro_batches = list(micro_batches)
            whole = self._loss_of_all(micro_batches)
        for batch in micro_batches:
            loss = loss + self.forward_backward(batch, whole)
            self.parts.engine.step()  # DeepSpeed updates the weights after the last micro-batch
        self._end_step(step, loss)

    def _loss_of_all(self, micro_batches: Sequence[MicroBatch]) -> GlobalLoss:
        """The loss of the global batch for losses in which images act on each other, and its gradient by all logits.

        It takes a forward pass over the micro-batches without a graph. The second pass, `forward_backward`, draws the
        same dropout and has the same batch statistics, so that its logits are the same.

        Raises:
            UserError: memory ran out.
        """
        with torch.no_grad(), unchanged_buffers(self.parts.engine.module):
            logits = []
            for batch in micro_batches:
                with explain_out_of_memory(self.context.device, batch):
                    logits.append(self._forward(batch, self._inputs(batch)))
        return self.parts.loss.over_batch(logits, micro_batches)

    def _inputs(self, batch: MicroBatch) -> Tensor:
        """The images of a micro-batch, standardised, augmented and mixed."""
        images = augmented(batch.images, batch.maps, self._statistics)
        return images if batch.mixup is None else mixed(images, batch.mixup)

    def _forward(self, batch: MicroBatch, images: Tensor) -> Tensor:
        """Logits of the images of a micro-batch."""
        torch.manual_seed(batch.seed)  # dropout and stochastic depth
        return self.parts.engine.forward(channels_last(images))

    def forward_backward(self, batch: MicroBatch, whole: GlobalLoss | None = None) -> Tensor:
        """Forward and backward pass of one micro-batch; returns its contribution to the global batch's loss.

        The loss is divided by the global batch's number of known labels, so DeepSpeed's mean over micro-batches and
        ranks is undone. World size and accumulation therefore affect only rounding.

        Args:
            batch: the micro-batch.
            whole: the global batch's loss, see `BatchLoss.contribution`.

        Raises:
            UserError: memory ran out.
        """
        context, parts = self.context, self.parts
        with explain_out_of_memory(context.device, batch):
            images, forward = self._inputs(batch), partial(self._forward, batch)
            if parts.adversary is None:
                loss = parts.loss.contribution(forward(images), batch, whole)
            else:
                seed = parts.batches.noise_seed(self.state.epoch, batch.step)
                loss = parts.adversary.contribution(forward, images, batch, seed)
            # A non-finite loss makes every gradient NaN, so that all ranks skip the step.
            poison = torch.where(torch.isfinite(loss.detach()), 1.0, torch.nan)
            parts.engine.backward(loss * (context.world_size * parts.batches.accumulation) * poison)
        return loss.detach()

    def _end_step(self, step: int, loss: Tensor) -> None:
        """All-reduce the status of this step, and act on the status of the previous one.

        The status is read one step late, so that the GPU never waits for the host. All ranks read the same
        status at the same step, and so act alike.
        """
        state, context, parts = self.state, self.context, self.parts
        skipped = parts.engine.step_was_skipped()
        parts.buffer_backup.after_step(skipped)
        if parts.ema is not None:
            parts.ema.update()
        # torch.tensor would wait for the GPU; torch.full passes the number to a kernel.
        flags = [self.stop.requested, context.rank == 0 and self.checkpoints.due()]
        on_device = [torch.full((), float(flag), device=context.device) for flag in flags]
        reduced = torch.stack([loss, skipped, *on_device])
        if context.world_size > 1:
            torch.distributed.all_reduce(reduced)
        ready = None
        if context.device.type == "cuda":
            reduced = reduced.to("cpu", non_blocking=True)
            ready = torch.cuda.current_stream().record_event()
        self._statuses.append(StepStatus(state.epoch, step, reduced, ready))
        state.step, state.total_steps = step + 1, state.total_steps + 1
        rate = parts.batches.learning_rate(state.epoch, step + 1)
        parts.engine.set_learning_rate(rate)
        self._report_step(step, rate)
        self._read_statuses(1)

    def _read_statuses(self, pending: int) -> None:
        """Process all but the last `pending` statuses; all of them if one requests a stop or a checkpoint."""
        save = stop = False
        while len(self._statuses) > (0 if save or stop else pending):
            status = self._statuses.popleft()
            if status.ready is not None:
                status.ready.synchronize()
            loss, skipped, stop_requested, checkpoint_due = status.reduced.tolist()
            self._record_step(status, loss, skipped > 0)
            stop, save = stop or stop_requested > 0, save or checkpoint_due > 0
        if save or stop:
            self.save_checkpoint()
        if stop:
            raise SystemExit(STOPPED)

    def _record_step(self, status: StepStatus, loss: float, skipped: bool) -> None:
        """Add a step to the state.

        Raises:
            UserError: too many consecutive steps were skipped.
        """
        state = self.state
        if not skipped:
            state.losses.append(loss)
            state.adam_steps, state.consecutive_skipped_steps = state.adam_steps + 1, 0
            return
        state.skipped_steps += 1
        state.consecutive_skipped_steps += 1
        if state.consecutive_skipped_steps > self.params.train.max_consecutive_skips:
            ids = self.parts.batches.image_ids(status.epoch, status.step)
            raise UserError(
                f"Non-finite loss or gradient in {state.consecutive_skipped_steps} steps in a row (epoch "
                f"{status.epoch + 1}, step {status.step + 1}). Lower train.learning_rate or train.clip_norm, or set "
                f"train.precision to float32. Images of the last of these batches: {', '.join(ids)}.",
                kind="not_finite",
            )

    def validate(self) -> EpochRecord:
        """Measure the last weights and the EMA, update the best weights of each kind, and end the epoch."""
        state, parts = self.state, self.parts
        record = EpochRecord(
            epoch=len(state.history) + 1,
            phase=parts.phase.name,
            learning_rate=parts.batches.learning_rate(state.epoch, parts.batches.steps - 1),
            train_loss=float(np.mean(state.losses)) if state.losses else None,
            skipped_steps=state.skipped_steps,
        )
        candidates: dict[WeightsKind, dict[str, Tensor]] = {"last": parts.engine.full_state_dict()}
        if parts.ema is not None:
            with parts.engine.use_weights(parts.ema.values):
                candidates["ema"] = parts.engine.full_state_dict()
        if parts.loss.learns_from is not None:
            parts.loss.learn(self.validator.scorer.score(candidates["last"], parts.loss.learns_from))
        self.validator.end_epoch(state, record, candidates)
        self._log(record.log_line(self.params.train.epochs, self.dataset.info.phantom))
        return record

    def save_checkpoint(self) -> None:
        """Write a checkpoint. All ranks must call it at the same step; rank 0 writes."""
        snapshot = self._snapshot()
        if snapshot is not None:
            self.checkpoints.save(*snapshot)
        torch.distributed.barrier()

    def save_unsaved(self) -> None:
        """Save the snapshot taken before validation, if any; needs no other rank."""
        self.stop.exit_immediately = False  # a second signal must not interrupt the write
        if self.unsaved_snapshot is not None and self.checkpoints.newest_step() != self.unsaved_snapshot.step:
            self.checkpoints.save(*self.unsaved_snapshot)

    def _snapshot(self) -> Snapshot | None:
        """The content of a checkpoint, on rank 0. All ranks must call it at the same step."""
        engine, ema, state = self.parts.engine, self.parts.ema, self.state
        keep = self.context.rank == 0
        tensors = {f"weights/{name}": tensor for name, tensor in engine.full_state_dict(keep).items()}
        tensors |= engine.optimizer_state_dict(keep)
        tensors |= {f"loss/{name}": tensor for name, tensor in self.parts.loss.state_dict().items()}
        if ema is not None:
            state.ema_steps = ema.steps
            with engine.use_weights(ema.values):
                tensors |= {f"ema/{name}": tensor for name, tensor in engine.full_state_dict(keep).items()}
        for kind, best in state.best.items():
            tensors |= {f"best_{kind}/{name}": tensor for name, tensor in best.weights.items()}
        if not keep:
            return None
        state.adam_steps = engine.optimizer_steps()
        contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
        return Snapshot(state.total_steps, contiguous, state.to_dict())

    def load_checkpoint(self) -> dict[str, Tensor]:
        """Restore the state from the newest checkpoint and return its tensors; empty without a checkpoint."""
        # Rank 0 decides: the file system of another machine may not list the newest one yet.
        step = self.checkpoints.newest_valid_step(self._log) if self.context.rank == 0 else None
        chosen = torch.full((1,), -1 if step is None else step, device=self.context.device)
        torch.distributed.broadcast(chosen, 0)
        if int(chosen) < 0:
            return {}
        tensors, state = self.checkpoints.load(int(chosen))
        self.state = TrainState.from_dict(state, tensors)
        self._log(f"Resuming from checkpoint at step {self.state.total_steps}: {self.checkpoints.folder}")
        return tensors

    @contextmanager
    def _show_progress(self) -> Iterator[None]:
        """Show the progress of the current phase inside the block, on rank 0."""
        if self.context.rank != 0:
            yield
            return
        state, parts = self.state, self.parts
        left = (parts.phase.epochs - state.epoch) * parts.batches.images(0) - parts.batches.images(
            0, state.step
        )
        with Progress("training", left, "images") as self._progress:
            yield
        self._progress = None

    def _report_step(self, step: int, rate: float) -> None:
        """Add a step's images to the progress and, every `STATUS_STEPS` steps, a status text."""
        if self._progress is None:
            return
        state = self.state
        text = ""
        if state.step % STATUS_STEPS == 1 and state.losses:
            text = f"epoch {len(state.history) + 1}, loss {state.losses[-1]:.4f}, lr {rate:.1e}"
        self._progress.add(self.parts.batches.images(step, step + 1), text)


def _silent(*_: object) -> None:
    """Log nothing: used on ranks other than 0."""
