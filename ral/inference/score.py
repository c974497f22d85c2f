"""Scoring: logits of arbitrary images, each computed once on one rank, and the metrics used for model selection."""

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

# Images per forward pass. It affects results only by rounding.
BATCH = 512


def normalised(pixels: Tensor, metadata: dict[str, Any]) -> Tensor:
    """uint8 [images, size, size] to float32 [images, 1, size, size], standardised by the training images'
    mean and SD.
    """
    # Convert first: torch's mixed uint8 and float arithmetic is seven times slower on a CPU, with identical
    # results.
    images = pixels.unsqueeze(1).to(torch.float32)
    return images.sub_(metadata["pixel_mean"]).div_(metadata["pixel_deviation"])


def score_images(
    network: nn.Module,
    dataset: Dataset,
    metadata: dict[str, Any],
    rows: np.ndarray,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> np.ndarray:
    """Raw logits float32 [rows, findings] of images.

    Args:
        network: in eval mode, on the device; its memory format is changed to channels_last.
        dataset: the prepared data.
        metadata: findings and pixel mean and SD of the data that the network was trained on.
        rows: row numbers in the dataset.
        device: device of the computation.
        dtype: autocast type; float32 disables autocast.
    """
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def batches() -> Iterator[Tensor]:
        for start in range(0, len(rows), BATCH):
            yield gather(dataset, rows[start : start + BATCH], device.type == "cuda")

    parts = [torch.empty((0, len(metadata["findings"])))]
    autocast = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
    with Prefetcher(batches) as prefetched, torch.inference_mode(), autocast:
        for pixels in prefetched:
            images = normalised(pixels.to(device, non_blocking=True), metadata)
            parts.append(network(images.contiguous(memory_format=torch.channels_last)).float())
    return torch.cat([part.to(device) for part in parts]).cpu().numpy()


class Scorer:
    """Scores images with given weights on a copy of the network, independent of the engine's sharding and
    state.

    Args:
        network: from `ral.models.build_model`; it is copied.
        dataset: the prepared data.
        dtype: autocast type; float32 disables autocast.
        rank: rank of this process.
        world: world size; each rank scores its share of the images.
        device: device of the computation.
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
        """Raw logits float32 [rows, findings], gathered on every rank. All ranks must call it."""
        self.network.load_state_dict(weights)
        local_rows = np.array_split(rows, self.world)[self.rank]
        local = score_images(
            self.network, self.dataset, self.dataset.metadata, local_rows, self.device, self.dtype
        )
        gathered: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(gathered, local)
        return np.concatenate(gathered)


def validation_scores(targets: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    """Macro AP and AUROC over the findings that have both a positive and a negative image.

    Raises:
        UserError: no finding has both, so the best epoch cannot be determined.
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
