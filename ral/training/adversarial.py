"""Adversarial training (`train.adversarial`): the loss of images that were changed so as to raise it.

An attack depends on its image, its labels and the weights only: batch norm in evaluation mode, no dropout, float32, and
a random start seeded by (seed, phase, epoch, position). So it is the same however a global batch is divided.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ral.config.train import AdversarialConfig
from ral.errors import UserError
from ral.inference.prefetch import MicroBatch
from ral.models import Network
from ral.models.inputs import PixelStatistics, channels_last
from ral.models.pgd import gray_bounds, pgd
from ral.training.batch_loss import BatchLoss


class Adversary:
    """The loss of micro-batches under attack.

    Args:
        config: the section train.adversarial.
        network: as it is trained, on the device; it is called without the engine, so its weights must be whole.
        loss: of the training.
        statistics: mean and standard deviation of the training pixels.

    Raises:
        UserError: the loss is not a sum over images.
    """

    def __init__(
        self, config: AdversarialConfig, network: Network, loss: BatchLoss, statistics: PixelStatistics
    ) -> None:
        if not loss.loss.separable:
            raise UserError(
                "train.adversarial needs a loss that is a sum over images, so that each can be attacked on its own. "
                "Choose another loss.name, or set train.adversarial to null."
            )
        self.config, self.network, self.loss, self.statistics = config, network, loss, statistics

    def contribution(
        self, forward: Callable[[Tensor], Tensor], images: Tensor, batch: MicroBatch, seed: int
    ) -> Tensor:
        """The part of the global batch's loss that is due to this micro-batch, a scalar.

        Args:
            forward: the training's own forward pass, images to logits.
            images: standardised and augmented, float32 [images, 1, size, size].
            batch: the micro-batch.
            seed: of the global batch's random starts.
        """
        config = self.config
        changed = self.attack(images, batch, seed)
        if config.loss == "pgd" and config.weight == 1:
            return self.loss.contribution(forward(changed), batch)
        clean, attacked = forward(images), forward(changed)
        own = self.loss.contribution(clean, batch)
        if config.loss == "pgd":
            other = self.loss.contribution(attacked, batch)
            return (1 - config.weight) * own + config.weight * other
        return own + config.weight * self._distance(clean, attacked, batch)

    def attack(self, images: Tensor, batch: MicroBatch, seed: int) -> Tensor:
        """The changed images; arguments as of `contribution`."""
        config, deviation = self.config, self.statistics.pixel_deviation
        bounds = gray_bounds(images, config.eps, self.statistics)
        positions = range(batch.first, batch.first + len(images))
        draws = random_starts(positions, images.shape[1:], seed).to(images.device)
        start = bounds.clip(bounds.low + draws * (bounds.high - bounds.low))
        with _evaluating(self.network):
            with torch.no_grad():
                clean = None if config.loss == "pgd" else self._logits(images)

            def gain(changed: Tensor) -> Tensor:
                logits = self._logits(changed)
                if clean is None:
                    return self.loss.contribution(logits, batch)
                return self._distance(clean, logits, batch)

            return pgd(gain, start, bounds, config.steps, config.step_levels / deviation)

    def _logits(self, images: Tensor) -> Tensor:
        # `forward`, not a call: torch.compile would compile further graphs, and the engine count a step.
        return self.network.forward(channels_last(images))

    def _distance(self, clean: Tensor, attacked: Tensor, batch: MicroBatch) -> Tensor:
        """How far the logits have moved: the sum over known labels, divided as the loss is."""
        if self.config.loss == "trades":
            apart = bernoulli_divergence(clean.float(), attacked.float())
        else:
            apart = (attacked.float() - clean.float()).abs()
        return (apart * _known(batch)).sum() / batch.labels


def bernoulli_divergence(first: Tensor, second: Tensor) -> Tensor:
    """Kullback-Leibler divergence of the scores σ(second) from σ(first), of each two logits."""
    return torch.sigmoid(first) * (first - second) + F.softplus(second) - F.softplus(first)


def random_starts(positions: range, shape: torch.Size, seed: int) -> Tensor:
    """Numbers in [0, 1) for each pixel of images, float32 [images, *shape], the same for a position wherever it is.

    Args:
        positions: of the images in the global batch.
        shape: of an image.
        seed: of the global batch.
    """
    draws = [np.random.default_rng([seed, place]).random(shape, dtype=np.float32) for place in positions]
    return torch.from_numpy(np.stack(draws))


def _known(batch: MicroBatch) -> Tensor:
    """1 where a label is known, 0 elsewhere; of mixed images, the mean by their shares. float32 [images, findings]."""
    known = (~batch.targets.isnan()).float()
    if batch.mixup is None:
        return known
    own, partners = known.chunk(2)
    return batch.mixup * own + (1 - batch.mixup) * partners


@contextmanager
def _evaluating(network: Network) -> Iterator[None]:
    """Evaluation mode and float32 inside the block; each module's mode and the precision are restored after it."""
    modes = [(module, module.training) for module in network.modules()]
    precision = network.use_bfloat16
    network.eval()
    network.use_bfloat16 = False
    try:
        yield
    finally:
        network.use_bfloat16 = precision
        for module, training in modes:
            module.training = training
