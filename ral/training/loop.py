"""The steps of one phase of the training: forward, backward, one message between the processes per optimizer step."""

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
from ral.inference.prefetch import MicroBatch, Prefetcher, gather, to_device
from ral.inference.score import normalised
from ral.losses import ClassCounts, Loss, build_loss
from ral.losses.base import effective_weights
from ral.training import engine as deepspeed_engine
from ral.training import plan
from ral.training.augment import draw_transforms, transform
from ral.training.ema import ModelEma
from ral.training.samplers import epoch_images, epoch_rows
from ral.training.state import PreemptionFlag, TrainState


class Phase(NamedTuple):
    """What is trained for how long."""

    name: str
    """network, or classifier: everything else frozen."""
    epochs: int
    learning_rate: float
    sampler: SamplerConfig


class DistributedContext(NamedTuple):
    """Which process this is."""

    rank: int
    world: int
    device: torch.device


class StepStatus(NamedTuple):
    """What the processes tell each other after an optimizer step, summed over them."""

    epoch: int
    step: int
    reduced: Tensor
    """[loss, passed over, asked to stop, time to save] on the CPU, when `ready`."""
    ready: "torch.cuda.Event | None"


class PhaseTrainer:
    """One process's share of one phase.

    The loss is a sum over labels, divided by the known labels of the global batch, which every process knows from the
    plan; DeepSpeed's mean over processes is undone. How the batch is shared out therefore changes nothing but rounding.

    Args:
        engine: DeepSpeed's engine around the network.
        frozen: modules that stay as they are, their batch statistics too.
        dataset: the prepared data.
        params: sections model, loss and train.
        phase: what is trained.
        place: this process.
        state: where the training stands; changed as it goes on.
        stop: whether someone asked for the end.
        timer: says whether it is time for a checkpoint; asked on rank 0 only.
        save: writes a checkpoint; called by all processes at the same step.
    """

    def __init__(
        self, engine: Any, frozen: list[nn.Module], dataset: Dataset, params: TrainParams, phase: Phase,
        place: DistributedContext, state: TrainState, stop: PreemptionFlag, timer: Callable[[], bool], save: Callable[[], None],
    ) -> None:  # fmt: skip
        self.engine, self.frozen, self.dataset, self.config = engine, frozen, dataset, params.train
        self.phase, self.place, self.state = phase, place, state
        self.stop, self.timer, self.save = stop, timer, save
        self.show: Callable[[int, str], None] | None = None
        """Told of every optimizer step: images, and a note now and then."""
        self.targets = dataset.targets()
        self.rows = dataset.rows("train")
        self.accumulation = deepspeed_engine.accumulation(self.config, place.world)
        self.ends = plan.batch_offsets(
            epoch_images(phase.sampler, self.targets[self.rows]), self.config.batch_size
        )
        parts = place.world * self.accumulation
        if np.diff(self.ends).min() < parts:
            raise UserError(
                f"A batch has {np.diff(self.ends).min()} images for {place.world} processes with {self.accumulation} "
                f"micro-batches each. Use fewer processes, or a larger train.micro_batch."
            )
        counts = ClassCounts.of(dataset.class_counts["train"], dataset.findings)
        self.loss = self._loss(params, counts)
        self.weights: Tensor | None = None
        reweight = self.config.reweight
        if reweight is not None:
            if not self.loss.by_label:
                raise UserError(
                    f"train.reweight weighs labels, and loss {params.loss.name} has none. Set it to null."
                )
            self.weights = effective_weights(counts.positives, reweight.beta).float().to(place.device)
        self.ema: ModelEma | None = None
        # Batch statistics of a step that is passed over may hold no number: they are taken back.
        self.buffers = [b for b in engine.module.buffers() if b.is_floating_point()]
        self.before: list[Tensor] = []
        self.statuses: collections.deque[StepStatus] = collections.deque()

    @property
    def steps(self) -> int:
        """Optimizer steps of an epoch."""
        return len(self.ends) - 1

    def train_epoch(self) -> None:
        """Train the rest of the state's epoch.

        Raises:
            UserError: too many steps in a row had no finite loss, or memory ran out.
            SystemExit: someone asked for the end; a checkpoint was written.
        """
        self.engine.train()
        for module in self.frozen:
            module.eval()
        self.loss.set_epoch(self.state.epoch)
        first = self.state.step
        deepspeed_engine.set_learning_rate(self.engine, self.rate(first))
        with Prefetcher(lambda: self._micro_batches(self.state.epoch, first)) as ahead:
            share = torch.zeros((), device=self.place.device)
            self.before = [b.clone() for b in self.buffers]
            for batch in to_device(ahead, self.place.device):
                share = share + self._backward(batch)
                self.engine.step()
                if not batch.last:
                    continue
                self._after_step(batch.step, share)
                share = torch.zeros((), device=self.place.device)
        self._drain_step_status(0)

    def _micro_batches(self, epoch: int, first: int) -> Iterator[MicroBatch]:
        """This process's micro-batches of an epoch from step `first` on; runs ahead in a thread."""
        config, place = self.config, self.place
        rows = self.epoch_rows(epoch)
        for step in range(first, self.steps):
            batch = rows[self.ends[step] : self.ends[step + 1]]
            generator = torch.Generator().manual_seed(self.draw(epoch, step, 0))
            maps = draw_transforms(len(batch), config.augment, generator).numpy()
            labels = self.loss.units(torch.from_numpy(self.targets[batch]))
            shares = plan.split_into_micro_batches(
                np.arange(len(batch)), place.rank, place.world, self.accumulation
            )
            for index, here in enumerate(shares):
                mine = batch[here]
                yield MicroBatch(
                    step=step,
                    last=index + 1 == len(shares),
                    images=gather(self.dataset, mine, place.device.type == "cuda"),
                    targets=torch.from_numpy(self.targets[mine]),
                    maps=torch.from_numpy(maps[here]),
                    labels=max(1, labels),
                    share=len(mine) / len(batch),
                    seed=self.draw(epoch, step, 1 + place.rank * self.accumulation + index),
                )

    def epoch_rows(self, epoch: int) -> np.ndarray:
        """Row numbers of an epoch's images in the order of training."""
        seed = self.config.seed if self.phase.name == "network" else self.config.seed + 2**31
        return epoch_rows(
            self.phase.sampler, self.targets[self.rows], self.rows, seed, epoch, self.phase.epochs
        )

    def draw(self, *key: int) -> int:
        """A seed that (train.seed, phase, key) decides."""
        phase = int(self.phase.name != "network")
        return int(
            np.random.SeedSequence([self.config.seed, phase, *key]).generate_state(1, np.uint64)[0] >> 1
        )

    def _backward(self, batch: MicroBatch) -> Tensor:
        """Forward and backward of one micro-batch; returns its share of the global batch's loss."""
        torch.manual_seed(batch.seed)  # dropout and stochastic depth
        place, config = self.place, self.config
        half = torch.autocast(place.device.type, torch.bfloat16, enabled=config.precision == "bfloat16")
        try:
            images = transform(normalised(batch.images, self.dataset.metadata), batch.maps)
            with half:
                logits = self.engine(images.contiguous(memory_format=torch.channels_last))
            loss = self._share_of_loss(logits, batch)
            # A loss that is not finite makes every gradient so, and the step is passed over on all processes.
            poison = torch.where(torch.isfinite(loss.detach()), 1.0, torch.nan)
            self.engine.backward(loss * (place.world * self.accumulation) * poison)
        except (RuntimeError, MemoryError) as error:
            if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "allocate memory" not in str(
                error
            ):
                raise
            raise UserError(
                f"Memory ran out on {place.device} with {len(batch.images)} images per forward and backward pass. Set "
                f"train.micro_batch to {max(1, len(batch.images) // 2)} or less (it divides train.batch_size, which stays), "
                "or model.gradient_checkpointing to true.",
                kind="memory",
            ) from error
        return loss.detach()

    def _share_of_loss(self, logits: Tensor, batch: MicroBatch) -> Tensor:
        value = self.loss(logits, batch.targets)
        if not self.loss.separable:
            return value * batch.share
        reweight = self.config.reweight
        if value.ndim:
            if self.weights is not None and reweight is not None and self.state.epoch >= reweight.from_epoch:
                value = value * self.weights
            value = value.sum()
        return value / batch.labels

    def _after_step(self, step: int, share: Tensor) -> None:
        """Tell the other processes how the step went; act on what they said after the one before.

        The answer is read a step late, so that a GPU never waits for the host. All processes read the same answer at
        the same step, and so act alike.
        """
        state, place = self.state, self.place
        bad = deepspeed_engine.step_was_skipped(self.engine, place.device)
        for buffer, before in zip(self.buffers, self.before, strict=True):
            buffer.copy_(torch.where(bad > 0, before, buffer))
            before.copy_(buffer)
        if self.ema is not None:
            self.ema.update(deepspeed_engine.local_state_dict(self.engine))
        sums = torch.stack([share, bad, bad.new_tensor(float(self.stop.requested)),
                            bad.new_tensor(float(place.rank == 0 and self.timer()))])  # fmt: skip
        torch.distributed.all_reduce(sums)
        ready = None
        if place.device.type == "cuda":
            sums = sums.to("cpu", non_blocking=True)
            ready = torch.cuda.current_stream().record_event()
        self.statuses.append(StepStatus(state.epoch, step, sums, ready))
        state.step, state.total_steps = step + 1, state.total_steps + 1
        rate = self.rate(step + 1)
        deepspeed_engine.set_learning_rate(self.engine, rate)
        if self.show is not None:
            self.show(int(self.ends[step + 1] - self.ends[step]), self._note(rate))
        self._drain_step_status(1)

    def rate(self, step: int) -> float:
        """Learning rate of a step of the state's epoch."""
        done, total = self.state.epoch * self.steps + step, self.phase.epochs * self.steps
        return plan.learning_rate(done, total, self.phase.learning_rate, self.config.warmup)

    def _drain_step_status(self, waiting: int) -> None:
        """Act on all but the last `waiting` statuses; on all of them where there is something to act on."""
        save = stop = False
        while len(self.statuses) > (0 if save or stop else waiting):
            status = self.statuses.popleft()
            if status.ready is not None:
                status.ready.synchronize()
            loss, bad, asked, timed = status.reduced.tolist()
            self._record_step(status, loss, bad > 0)
            stop, save = stop or asked > 0, save or timed > 0
        if save or stop:
            self.save()
        if stop:
            raise SystemExit(143)

    def _record_step(self, status: StepStatus, loss: float, bad: bool) -> None:
        state = self.state
        if not bad:
            state.losses.append(loss)
            state.adam_steps, state.consecutive_skipped_steps = state.adam_steps + 1, 0
            return
        state.skipped_steps, state.consecutive_skipped_steps = (
            state.skipped_steps + 1,
            state.consecutive_skipped_steps + 1,
        )
        if state.consecutive_skipped_steps > self.config.max_consecutive_skips:
            rows = self.epoch_rows(status.epoch)[self.ends[status.step] : self.ends[status.step + 1]]
            ids = self.dataset.studies["image_id"].to_numpy()[rows]
            raise UserError(
                f"The loss or its gradient was not finite in {state.consecutive_skipped_steps} steps in a row (epoch "
                f"{status.epoch + 1}, step {status.step + 1}). Lower train.learning_rate or train.clip_norm, or set "
                f"train.precision to float32. The images of the last of these batches: {', '.join(ids)}.",
                kind="not_finite",
            )

    def _note(self, rate: float) -> str:
        if self.state.step % 20 != 1 or not self.state.losses:
            return ""
        return f"epoch {len(self.state.history) + 1}, loss {self.state.losses[-1]:.4f}, lr {rate:.1e}"

    def _loss(self, params: TrainParams, counts: ClassCounts) -> Loss:
        options = getattr(params.loss, params.loss.name).model_dump()
        loss = build_loss(params.loss.name, options, counts)
        if loss.separable:
            loss.reduction = "none" if self.config.reweight is not None and loss.by_label else "sum"
        return loss.to(self.place.device)
