"""The training loop of one phase: forward, backward, and one all-reduce of the step status per optimizer step."""

import collections
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ral.config.sampler import SamplerConfig
from ral.config.train import TrainParams
from ral.data.dataset import Dataset
from ral.errors import UserError
from ral.inference.prefetch import MicroBatch, Prefetcher, gather, pinned, to_device
from ral.losses import ClassCounts, Loss, build_loss
from ral.losses.base import effective_weights
from ral.models.inputs import channels_last, normalised
from ral.training import engine as deepspeed_engine
from ral.training import plan
from ral.training.augment import draw_transforms, transform
from ral.training.batch_norm import BufferBackup
from ral.training.ema import ModelEma
from ral.training.samplers import epoch_images, epoch_rows
from ral.training.state import PreemptionFlag, TrainState


class Phase(NamedTuple):
    """What is trained, and for how long."""

    name: str
    """"network", or "classifier" (everything else is frozen)."""
    epochs: int
    learning_rate: float
    sampler: SamplerConfig


class DistributedContext(NamedTuple):
    """Rank, world size and device of this process."""

    rank: int
    world_size: int
    device: torch.device


class StepStatus(NamedTuple):
    """Status of an optimizer step, summed over all ranks."""

    epoch: int
    step: int
    reduced: Tensor
    """[loss, skipped, stop requested, checkpoint due], on the CPU once `ready` is done."""
    ready: "torch.cuda.Event | None"


class PhaseTrainer:
    """Trains one phase, on one rank.

    The loss is a sum over labels divided by the number of known labels in the global batch, which every rank
    computes from the plan; DeepSpeed's mean over ranks is undone. World size and accumulation therefore
    affect only rounding.

    Args:
        engine: DeepSpeed's engine around the network.
        frozen: modules that are not trained; their batch statistics are not updated either.
        dataset: the prepared data.
        params: sections model, loss and train.
        phase: what is trained.
        context: rank, world size and device.
        state: state of the training; updated in place.
        stop: set when training is to stop.
        checkpoint_due: whether it is time for a checkpoint; called on rank 0 only.
        save: writes a checkpoint; called by all ranks at the same step.
    """

    def __init__(
        self, engine: Any, frozen: list[nn.Module], dataset: Dataset, params: TrainParams, phase: Phase,
        context: DistributedContext, state: TrainState, stop: PreemptionFlag, checkpoint_due: Callable[[], bool],
        save: Callable[[], None],
    ) -> None:  # fmt: skip
        self.engine, self.frozen, self.dataset, self.config = engine, frozen, dataset, params.train
        self.phase, self.context, self.state = phase, context, state
        self.stop, self.checkpoint_due, self.save = stop, checkpoint_due, save
        self.on_step: Callable[[int, str], None] | None = None
        """Called after every optimizer step with its number of images and, every 20 steps, a status text."""
        self.targets = dataset.targets()
        self.rows = dataset.rows("train")
        self.accumulation = deepspeed_engine.accumulation(self.config, context.world_size)
        self.batch_offsets = plan.batch_offsets(
            epoch_images(phase.sampler, self.targets[self.rows]), self.config.batch_size
        )
        smallest = np.diff(self.batch_offsets).min()
        if smallest < context.world_size * self.accumulation:
            raise UserError(
                f"A batch has {smallest} images for {context.world_size} processes with {self.accumulation} "
                f"micro-batches each. Use fewer processes, or a larger train.micro_batch."
            )
        counts = ClassCounts.of(dataset.class_counts["train"], dataset.findings)
        self.loss = self._loss(params, counts)
        self.weights: Tensor | None = None
        reweight = self.config.reweight
        if reweight is not None:
            if not self.loss.by_label:
                raise UserError(
                    f"train.reweight needs a loss with one term per label; {params.loss.name} has none. Set it to null."
                )
            self.weights = effective_weights(counts.positives, reweight.beta).float().to(context.device)
        self.ema: ModelEma | None = None
        self.buffer_backup = BufferBackup(engine.module)
        self.copy_stream = torch.cuda.Stream(context.device) if context.device.type == "cuda" else None
        self.statuses: collections.deque[StepStatus] = collections.deque()

    @property
    def steps(self) -> int:
        """Optimizer steps per epoch."""
        return len(self.batch_offsets) - 1

    def train_epoch(self) -> None:
        """Train the rest of the current epoch.

        Raises:
            UserError: too many consecutive steps were skipped, or memory ran out.
            SystemExit: a stop was requested; a checkpoint was written.
        """
        self.engine.train()
        for module in self.frozen:
            module.eval()
        self.loss.set_epoch(self.state.epoch)
        first = self.state.step
        deepspeed_engine.set_learning_rate(self.engine, self.rate(first))
        with Prefetcher(lambda: self._micro_batches(self.state.epoch, first)) as micro_batches:
            loss = torch.zeros((), device=self.context.device)
            self.buffer_backup.save()
            for batch in to_device(micro_batches, self.copy_stream):
                loss = loss + self._backward(batch)
                self.engine.step()
                if not batch.last:
                    continue
                self._after_step(batch.step, loss)
                loss = torch.zeros((), device=self.context.device)
        self._drain_step_status(0)

    def _micro_batches(self, epoch: int, first: int) -> Iterator[MicroBatch]:
        """This rank's micro-batches of an epoch, starting at step `first`; runs in the prefetch thread."""
        config, context = self.config, self.context
        pin = context.device.type == "cuda"  # copies to the GPU are asynchronous from pinned memory only
        rows = self.epoch_rows(epoch)
        for step in range(first, self.steps):
            batch = rows[self.batch_offsets[step] : self.batch_offsets[step + 1]]
            generator = torch.Generator().manual_seed(self.seed(epoch, step, 0))
            maps = draw_transforms(len(batch), config.augment, generator).numpy()
            labels = self.loss.units(torch.from_numpy(self.targets[batch]))
            micro_batches = plan.split_into_micro_batches(
                np.arange(len(batch)), context.rank, context.world_size, self.accumulation
            )
            for index, positions in enumerate(micro_batches):
                micro_rows = batch[positions]
                yield MicroBatch(
                    step=step,
                    last=index + 1 == len(micro_batches),
                    images=gather(self.dataset, micro_rows, pin),
                    targets=pinned(torch.from_numpy(self.targets[micro_rows]), pin),
                    maps=pinned(torch.from_numpy(maps[positions]), pin),
                    labels=max(1, labels),
                    share=len(micro_rows) / len(batch),
                    seed=self.seed(epoch, step, 1 + context.rank * self.accumulation + index),
                )

    def epoch_rows(self, epoch: int) -> np.ndarray:
        """Row numbers of an epoch's images, in training order."""
        seed = self.config.seed if self.phase.name == "network" else self.config.seed + 2**31
        return epoch_rows(
            self.phase.sampler, self.targets[self.rows], self.rows, seed, epoch, self.phase.epochs
        )

    def seed(self, *key: int) -> int:
        """A seed derived from (train.seed, phase, key)."""
        phase = int(self.phase.name != "network")
        return int(
            np.random.SeedSequence([self.config.seed, phase, *key]).generate_state(1, np.uint64)[0] >> 1
        )

    def _backward(self, batch: MicroBatch) -> Tensor:
        """Forward and backward pass of one micro-batch; returns its contribution to the global batch's loss."""
        torch.manual_seed(batch.seed)  # dropout and stochastic depth
        context = self.context
        try:
            images = transform(normalised(batch.images, self.dataset.metadata), batch.maps)
            logits = self.engine(channels_last(images))
            loss = self._loss_contribution(logits, batch)
            # A non-finite loss makes every gradient NaN, so that all ranks skip the step.
            poison = torch.where(torch.isfinite(loss.detach()), 1.0, torch.nan)
            self.engine.backward(loss * (context.world_size * self.accumulation) * poison)
        except (RuntimeError, MemoryError) as error:
            if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "allocate memory" not in str(
                error
            ):
                raise
            raise UserError(
                f"Out of memory on {context.device} with {len(batch.images)} images per forward and backward pass. Set "
                f"train.micro_batch to {max(1, len(batch.images) // 2)} or less (train.batch_size stays the same), or "
                "model.gradient_checkpointing to true.",
                kind="memory",
            ) from error
        return loss.detach()

    def _loss_contribution(self, logits: Tensor, batch: MicroBatch) -> Tensor:
        value = self.loss(logits, batch.targets)
        if not self.loss.separable:
            return value * batch.share
        reweight = self.config.reweight
        if value.ndim:
            if self.weights is not None and reweight is not None and self.state.epoch >= reweight.from_epoch:
                value = value * self.weights
            value = value.sum()
        return value / batch.labels

    def _after_step(self, step: int, loss: Tensor) -> None:
        """All-reduce the status of this step, and act on the status of the previous one.

        The status is read one step late, so that the GPU never waits for the host. All ranks read the same
        status at the same step, and so act alike.
        """
        state, context = self.state, self.context
        skipped = deepspeed_engine.step_was_skipped(self.engine, context.device)
        self.buffer_backup.after_step(skipped)
        if self.ema is not None:
            self.ema.update()
        # torch.tensor would wait for the GPU; torch.full passes the number to a kernel.
        flags = [self.stop.requested, context.rank == 0 and self.checkpoint_due()]
        on_device = [torch.full((), float(flag), device=context.device) for flag in flags]
        reduced = torch.stack([loss, skipped, *on_device])
        if context.world_size > 1:
            torch.distributed.all_reduce(reduced)
        ready = None
        if context.device.type == "cuda":
            reduced = reduced.to("cpu", non_blocking=True)
            ready = torch.cuda.current_stream().record_event()
        self.statuses.append(StepStatus(state.epoch, step, reduced, ready))
        state.step, state.total_steps = step + 1, state.total_steps + 1
        rate = self.rate(step + 1)
        deepspeed_engine.set_learning_rate(self.engine, rate)
        if self.on_step is not None:
            images = int(self.batch_offsets[step + 1] - self.batch_offsets[step])
            self.on_step(images, self._status_text(rate))
        self._drain_step_status(1)

    def rate(self, step: int) -> float:
        """Learning rate of a step of the current epoch."""
        done, total = self.state.epoch * self.steps + step, self.phase.epochs * self.steps
        return plan.learning_rate(done, total, self.phase.learning_rate, self.config.warmup)

    def _drain_step_status(self, pending: int) -> None:
        """Process all but the last `pending` statuses; all of them if one requests a stop or a checkpoint."""
        save = stop = False
        while len(self.statuses) > (0 if save or stop else pending):
            status = self.statuses.popleft()
            if status.ready is not None:
                status.ready.synchronize()
            loss, skipped, stop_requested, checkpoint_due = status.reduced.tolist()
            self._record_step(status, loss, skipped > 0)
            stop, save = stop or stop_requested > 0, save or checkpoint_due > 0
        if save or stop:
            self.save()
        if stop:
            raise SystemExit(143)

    def _record_step(self, status: StepStatus, loss: float, skipped: bool) -> None:
        state = self.state
        if not skipped:
            state.losses.append(loss)
            state.adam_steps, state.consecutive_skipped_steps = state.adam_steps + 1, 0
            return
        state.skipped_steps += 1
        state.consecutive_skipped_steps += 1
        if state.consecutive_skipped_steps > self.config.max_consecutive_skips:
            rows = self.epoch_rows(status.epoch)[
                self.batch_offsets[status.step] : self.batch_offsets[status.step + 1]
            ]
            ids = self.dataset.studies["image_id"].to_numpy()[rows]
            raise UserError(
                f"Non-finite loss or gradient in {state.consecutive_skipped_steps} steps in a row (epoch "
                f"{status.epoch + 1}, step {status.step + 1}). Lower train.learning_rate or train.clip_norm, or set "
                f"train.precision to float32. Images of the last of these batches: {', '.join(ids)}.",
                kind="not_finite",
            )

    def _status_text(self, rate: float) -> str:
        if self.state.step % 20 != 1 or not self.state.losses:
            return ""
        return f"epoch {len(self.state.history) + 1}, loss {self.state.losses[-1]:.4f}, lr {rate:.1e}"

    def _loss(self, params: TrainParams, counts: ClassCounts) -> Loss:
        options = getattr(params.loss, params.loss.name).model_dump()
        loss = build_loss(params.loss.name, options, counts)
        if loss.separable:
            loss.reduction = "none" if self.config.reweight is not None and loss.by_label else "sum"
        return loss.to(self.context.device)
