"""Scoring: logits of arbitrary images, each computed once on one rank, and the metrics used for model selection."""

import copy
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor, nn

from ral.data.dataset import Dataset
from ral.data.dataset_info import DatasetInfo
from ral.errors import UserError
from ral.inference.prefetch import Prefetcher, gather
from ral.labels import patient_counts
from ral.models import Network
from ral.models.info import ModelInfo
from ral.models.inputs import PixelStatistics, channels_last, normalised

logger = logging.getLogger(__name__)

# Images per forward pass: at most BATCH, and at most PIXELS pixels, for the memory of the activations (ConvNeXt-B in
# float32 needs 12 GB for 2**25 pixels). It affects results only by rounding.
BATCH, PIXELS = 512, 2**25


def images_per_pass(size: int) -> int:
    """Images of `size` x `size` pixels per forward pass."""
    return min(BATCH, max(1, PIXELS // size**2))


def score_images(
    network: nn.Module,
    dataset: Dataset,
    info: ModelInfo | DatasetInfo,
    rows: np.ndarray,
    device: torch.device,
    pad: bool = False,
) -> np.ndarray:
    """Raw logits float32 [rows, findings] of images. If memory runs out, the number of images per pass is halved.

    Args:
        network: in eval mode, on the device; its memory format is changed to channels_last.
        dataset: the prepared data.
        info: of the model, or of the data that it is trained on: findings and statistics of the pixels.
        rows: row numbers in the dataset.
        device: device of the computation.
        pad: fill the last pass up with empty images, whose logits are dropped, so that a compiled network sees one
            shape only.

    Raises:
        UserError: memory does not suffice for one image.
    """
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    loaded = count = images_per_pass(dataset.info.size)

    def batches() -> Iterator[Tensor]:
        for start in range(0, len(rows), loaded):
            yield gather(dataset, rows[start : start + loaded], device.type == "cuda")

    parts = [torch.empty((0, len(info.findings)), device=device)]
    with Prefetcher(batches) as prefetched, torch.no_grad():
        for pixels in prefetched:
            scored, count = score_pixels(network, pixels, info, device, count, pad)
            parts += scored
    return torch.cat(parts).cpu().numpy()


def score_pixels(
    network: nn.Module, pixels: Tensor, info: PixelStatistics, device: torch.device, count: int, pad: bool
) -> tuple[list[Tensor], int]:
    """Raw logits of pixels uint8 [images, size, size], `count` images per pass, fewer if memory runs out.

    Gradients must be disabled. Arguments are those of `score_images`.

    Returns:
        Logits float32 on the device, a tensor for each pass; and the number of images per pass that fits.

    Raises:
        UserError: memory does not suffice for one image.
    """
    parts: list[Tensor] = []
    done = 0
    while done < len(pixels):
        part = pixels[done : done + count]
        try:
            moved = part.to(device, non_blocking=True)
            parts.append(_logits(network, moved, info, count if pad else 0))
        except torch.OutOfMemoryError:
            pass
        else:
            done += len(part)
            continue
        if count == 1:
            raise UserError(f"Out of memory on {device} when scoring a single image.", kind="memory")
        count = max(1, min(count, len(part)) // 2)
        logger.warning("Out of memory on %s: scoring %d images at a time.", device, count)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return parts, count


def _logits(network: nn.Module, pixels: Tensor, info: PixelStatistics, padded: int) -> Tensor:
    """Logits float32 of a pass, filled up to `padded` images on the way."""
    number = len(pixels)
    if padded > number:
        pixels = torch.cat([pixels, pixels.new_zeros((padded - number, *pixels.shape[1:]))])
    logits: Tensor = network(channels_last(normalised(pixels, info)))
    return logits[:number].float()


class Scorer:
    """Scores images with given weights on a copy of the network, independent of the engine's sharding and
    state.

    Args:
        network: from `ral.models.build_model`; it is copied.
        dataset: the prepared data.
        compile: whether to use torch.compile.
        rank: rank of this process.
        world: world size; each rank scores its share of the images.
        device: device of the computation.
    """

    def __init__(
        self,
        network: Network,
        dataset: Dataset,
        compile: bool,
        rank: int,
        world: int,
        device: torch.device,
    ) -> None:
        self.network = copy.deepcopy(network).eval().to(device)
        if compile:
            self.network.compile(dynamic=False)
        self.dataset, self.compile = dataset, compile
        self.rank, self.world, self.device = rank, world, device

    def score(self, weights: dict[str, Tensor], rows: np.ndarray) -> np.ndarray:
        """Raw logits float32 [rows, findings], gathered on every rank. All ranks must call it."""
        self.network.load_state_dict(weights)
        local_rows = np.array_split(rows, self.world)[self.rank]
        local = score_images(
            self.network, self.dataset, self.dataset.info, local_rows, self.device, pad=self.compile
        )
        if self.world == 1:
            return local
        gathered: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(gathered, local)
        return np.concatenate(gathered)


def estimable_findings(targets: np.ndarray, patients: np.ndarray, minimum: int) -> np.ndarray:
    """The findings over which validation metrics are averaged, by the rule of the step evaluate: at least `minimum`
    patients with a positive and with a negative image. If no finding has as many (small data), those with any.

    Args:
        targets: [rows, findings]; 1, 0, NaN where unknown.
        patients: patient of each row.
        minimum: evaluate.min_positives.

    Returns:
        Boolean [findings].

    Raises:
        UserError: no finding has both, so the best epoch cannot be determined.
    """
    numbers = pd.factorize(patients)[0]  # comparing the texts would take longer
    fewest = np.array([min(patient_counts(labels, numbers)) for labels in targets.T])
    if not (fewest > 0).any():
        raise UserError("No finding has both positive and negative images in validation. Raise split.val.")
    return fewest >= (minimum if (fewest >= minimum).any() else 1)


def ap_and_auroc(targets: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """AP and AUROC of findings that all have a positive and a negative image, float64 [2, findings]."""
    values = np.empty((2, targets.shape[1]))
    for index, (labels, scores) in enumerate(zip(targets.T, logits.T, strict=True)):
        known = ~np.isnan(labels)
        values[0, index] = average_precision_score(labels[known], scores[known])
        values[1, index] = roc_auc_score(labels[known], scores[known])
    return values
