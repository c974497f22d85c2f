"""The batches of a phase: which images each global batch has, and this rank's micro-batches of it."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from ral.config.train import TrainParams
from ral.data.dataset import Dataset
from ral.errors import UserError
from ral.inference.prefetch import MicroBatch, Prefetcher, gather, pinned, to_device
from ral.training import plan
from ral.training.augment import draw_transforms
from ral.training.batch_loss import BatchLoss
from ral.training.distributed import DistributedContext
from ral.training.engine import accumulation
from ral.training.mixup import draw_mixture
from ral.training.plan import Phase
from ral.training.samplers import epoch_images, epoch_rows

# Added to train.seed for the order of the images in the second phase.
CLASSIFIER_SEED = 2**31


class Batches:
    """The batches of one phase, on one rank: functions of (seed, phase, epoch, position) only.

    Args:
        phase: what is trained.
        params: sections model, loss and train.
        dataset: the prepared data.
        loss: computes the divisor of a global batch's loss.
        context: rank, world size and device.

    Raises:
        UserError: the global batch cannot be split evenly, or has too few images for that.
    """

    def __init__(
        self,
        phase: Phase,
        params: TrainParams,
        dataset: Dataset,
        loss: BatchLoss,
        context: DistributedContext,
    ) -> None:
        self.phase, self.config, self.dataset, self.loss, self.context = (
            phase,
            params.train,
            dataset,
            loss,
            context,
        )
        self.rows = dataset.rows("train")
        self.accumulation = accumulation(self.config, context.world_size)
        self.offsets = plan.batch_offsets(
            epoch_images(phase.sampler, dataset.labels[self.rows]), self.config.batch_size
        )
        """Start and end of each global batch among the images of an epoch, int64 [steps + 1]."""
        smallest = np.diff(self.offsets).min()
        if smallest < context.world_size * self.accumulation:
            raise UserError(
                f"A batch has {smallest} images for {context.world_size} processes with {self.accumulation} "
                f"micro-batches each. Use fewer processes, or a larger train.micro_batch."
            )
        self._copy_stream = torch.cuda.Stream(context.device) if context.device.type == "cuda" else None

    @property
    def steps(self) -> int:
        """Optimizer steps per epoch."""
        return len(self.offsets) - 1

    def images(self, first: int, end: int | None = None) -> int:
        """Images of the steps from `first` to before `end` (None: all others) of an epoch."""
        return int(self.offsets[self.steps if end is None else end] - self.offsets[first])

    @contextmanager
    def prefetch(self, epoch: int, first: int) -> Iterator[Iterator[MicroBatch]]:
        """This rank's micro-batches of an epoch from step `first` on, on the device: gathered in a thread, and copied
        to a GPU while the one before is computed.
        """
        with Prefetcher(lambda: self.micro_batches(epoch, first)) as gathered:
            yield to_device(gathered, self._copy_stream)

    def micro_batches(self, epoch: int, first: int) -> Iterator[MicroBatch]:
        """This rank's micro-batches of an epoch from step `first` on, on the CPU."""
        context = self.context
        pin = context.device.type == "cuda"  # copies to the GPU are asynchronous from pinned memory only
        rows = self.epoch_rows(epoch)
        for step in range(first, self.steps):
            batch = rows[self.offsets[step] : self.offsets[step + 1]]
            generator = torch.Generator().manual_seed(self._seed(epoch, step, 0))
            maps = draw_transforms(len(batch), self.config.augment, generator).numpy()
            targets = torch.from_numpy(self.dataset.targets(batch))
            divisor = self.loss.divisor(targets)
            mixture = None
            if self.config.mixup:
                mixture = draw_mixture(len(batch), self.config.mixup, self._seed(epoch, step, 0, 1))
            micro_batches = plan.split_into_micro_batches(
                np.arange(len(batch)), context.rank, context.world_size, self.accumulation
            )
            for index, own in enumerate(micro_batches):
                positions = own if mixture is None else np.concatenate([own, mixture.partners[own]])
                micro_rows = batch[positions]
                yield MicroBatch(
                    step=step,
                    images=gather(self.dataset, micro_rows, pin),
                    targets=pinned(targets[torch.from_numpy(positions)], pin),
                    maps=pinned(torch.from_numpy(maps[positions]), pin),
                    labels=divisor,
                    first=int(positions[0]),
                    total=len(batch),
                    seed=self._seed(epoch, step, 1 + context.rank * self.accumulation + index),
                    mixup=None if mixture is None else mixture.share,
                )

    def noise_seed(self, epoch: int, step: int) -> int:
        """Seed of the random starts of attacks on a global batch; see `ral.training.adversarial`."""
        return self._seed(epoch, step, 0, 2)

    def image_ids(self, epoch: int, step: int) -> list[str]:
        """IDs of the images of a global batch."""
        rows = self.epoch_rows(epoch)[self.offsets[step] : self.offsets[step + 1]]
        return list(self.dataset.image_ids(rows))

    def epoch_rows(self, epoch: int) -> np.ndarray:
        """Row numbers of an epoch's images, in training order."""
        seed = self.config.seed + (CLASSIFIER_SEED if self.phase.classifier_only else 0)
        labels = self.dataset.labels[self.rows]
        return epoch_rows(self.phase.sampler, labels, self.rows, seed, epoch, self.phase.epochs)

    def _seed(self, *key: int) -> int:
        """A seed derived from (train.seed, phase, key)."""
        sequence = np.random.SeedSequence([self.config.seed, int(self.phase.classifier_only), *key])
        return int(sequence.generate_state(1, np.uint64)[0] >> 1)

    def learning_rate(self, epoch: int, step: int) -> float:
        """Learning rate of a step of an epoch, both from 0."""
        done, total = epoch * self.steps + step, self.phase.epochs * self.steps
        return plan.learning_rate(done, total, self.phase.learning_rate, self.config.warmup)
