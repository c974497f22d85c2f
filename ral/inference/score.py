"""Logits of arbitrary images, each scored exactly once by one process, and the figures that choose the weights."""

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor, nn

from ral.data.dataset import Dataset
from ral.errors import UserError
from ral.inference.prefetch import Prefetcher, gather

# Images per forward pass; no gradient is kept, and results do not depend on it beyond rounding.
BATCH = 512


def normalised(pixels: Tensor, facts: dict[str, Any]) -> Tensor:
    """Images float32 [images, 1, size, size] from uint8 [images, size, size], by the training images' mean and deviation."""
    # Converted first: torch's arithmetic between uint8 and float takes seven times as long on a CPU, for the same bits.
    images = pixels.unsqueeze(1).to(torch.float32)
    return images.sub_(facts["pixel_mean"]).div_(facts["pixel_deviation"])


def score_images(
    network: nn.Module,
    dataset: Dataset,
    facts: dict[str, Any],
    rows: np.ndarray,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> np.ndarray:
    """Raw logits float32 [rows, findings] of images.

    Args:
        network: in eval mode, on the device; its memory layout is changed.
        dataset: the prepared data.
        facts: findings, and the mean and deviation of pixels, of the data that the network was trained on.
        rows: of the dataset.
        device: where to compute.
        dtype: of the arithmetic (autocast).
    """
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def batches() -> Iterator[Tensor]:
        for start in range(0, len(rows), BATCH):
            yield gather(dataset, rows[start : start + BATCH], device.type == "cuda")

    parts = [torch.empty((0, len(facts["findings"])))]
    half = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
    with Prefetcher(batches) as ahead, torch.inference_mode(), half:
        for pixels in ahead:
            images = normalised(pixels.to(device, non_blocking=True), facts)
            parts.append(network(images.contiguous(memory_format=torch.channels_last)).float())
    return torch.cat([part.to(device) for part in parts]).cpu().numpy()


class Scorer:
    """Scores images with given weights, by a plain copy of the network: what the engine does to its own is no matter.

    Args:
        network: as `ral.models.build_model` gives it; copied.
        dataset: the prepared data.
        dtype: of the arithmetic (autocast).
        rank: this process.
        world: number of processes, which share the images out.
        device: where to compute.
    """

    def __init__(
        self,
        network: nn.Module,
        dataset: Dataset,
        dtype: torch.dtype,
        rank: int,
        world: int,
        device: torch.device,
    ) -> None:
        self.network = copy.deepcopy(network).eval().to(device)
        self.dataset, self.dtype = dataset, dtype
        self.rank, self.world, self.device = rank, world, device

    def score(self, weights: dict[str, Tensor], rows: np.ndarray) -> np.ndarray:
        """Raw logits float32 [rows, findings]. Every process must call it, and gets all of them."""
        self.network.load_state_dict(weights)
        mine = np.array_split(rows, self.world)[self.rank]
        here = score_images(self.network, self.dataset, self.dataset.metadata, mine, self.device, self.dtype)
        gathered: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(gathered, here)
        return np.concatenate(gathered)


def validation_scores(targets: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    """Macro AP and AUROC over the findings that have both a positive and a negative image.

    Raises:
        UserError: no finding has both, so that no epoch could be called the best.
    """
    ap, auroc = [], []
    for labels, scores in zip(targets.T, logits.T, strict=True):
        known = ~np.isnan(labels)
        if len(set(labels[known])) == 2:
            ap.append(average_precision_score(labels[known], scores[known]))
            auroc.append(roc_auc_score(labels[known], scores[known]))
    if not ap:
        raise UserError("No finding has both positive and negative images in validation. Raise split.val.")
    return {"val_macro_ap": float(np.mean(ap)), "val_macro_auroc": float(np.mean(auroc))}
