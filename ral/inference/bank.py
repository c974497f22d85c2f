"""The feature bank: the penultimate features of all images, computed once and memory-mapped afterwards."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ral import artifacts
from ral.data.dataset import Dataset
from ral.errors import UserError
from ral.explain.features import feature_map, pooled
from ral.files import atomic_directory, sha256
from ral.inference.prefetch import Prefetcher, gather
from ral.inference.score import images_per_pass, score_pixels
from ral.models import Network, classifier
from ral.models.inputs import PixelStatistics
from ral.models.load import load_network
from ral.records import Record

Precision = Literal["float16", "float32"]

FEATURES, INFO = artifacts.FEATURE_ARRAY.name, artifacts.BANK.name


class BankInfo(Record):
    """Content of bank.json: which features these are."""

    if_damaged: ClassVar[str] = "Remove the folder; it is made again."

    key: str
    """See `bank_key`."""
    precision: Precision
    images: int
    width: int


class Features(nn.Module):
    """A network without its classifier: images to the vectors that a linear classifier reads [images, width]."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Features of normalised images float32 [images, 1, height, width]."""
        return pooled(self.network, feature_map(self.network, images))


def bank_key(models: Path, dataset: Dataset, precision: Precision) -> str:
    """What decides the features: weights and description of the network, the pixels, and the precision."""
    parts = {
        "weights": sha256(models / "model.safetensors"),
        "model": json.loads((models / "model.json").read_text(encoding="utf-8")),
        "shards": [shard.sha256 for shard in dataset.info.shards],
        "precision": precision,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def folder_name(key: str) -> str:
    """Name of the folder of a bank that is kept for later."""
    return key[:16]


def open_bank(
    models: Path,
    dataset: Dataset,
    folder: Path,
    precision: Precision,
    device: torch.device,
    written: Path | None = None,
) -> np.ndarray:
    """The features of all images of the data set, in its order; computed if no bank of this model and data exists.

    Args:
        models: output folder of the step train.
        dataset: the prepared data.
        folder: where banks are kept, each in a folder named by its key.
        precision: of the stored numbers.
        device: device of the computation.
        written: output folder of the step features, used if its bank is of this model, these data and this precision.

    Returns:
        Memory-mapped, read-only [images, width].

    Raises:
        UserError: see `write_bank`; or the bank is damaged.
    """
    key = bank_key(models, dataset, precision)
    path = folder / folder_name(key)
    if written is not None and (written / INFO).is_file() and BankInfo.read(written / INFO).key == key:
        path = written
    elif not (path / INFO).is_file():
        write_bank(path, models, dataset, precision, device)
    info = BankInfo.read(path / INFO)
    try:
        features: np.ndarray = np.load(path / FEATURES, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}). {BankInfo.if_damaged}") from None
    expected = len(dataset), info.width
    if (info.key, info.images) != (key, expected[0]) or features.shape != expected:
        raise UserError(f"{path} is damaged: it is not the bank of these images. {BankInfo.if_damaged}")
    return features


def write_bank(
    path: Path, models: Path, dataset: Dataset, precision: Precision, device: torch.device
) -> BankInfo:
    """Compute the features of all images and write them.

    Args:
        path: folder to write.
        models: output folder of the step train.
        dataset: the prepared data.
        precision: of the stored numbers.
        device: device of the computation.

    Returns:
        Content of bank.json.

    Raises:
        UserError: see `load_network` and `require_linear`; a feature is not finite in this precision, the backbone has
            no single feature map, or memory does not suffice for one image.
    """
    network, info = load_network(models)
    require_linear(network)
    network = network.to(device)
    with atomic_directory(path) as draft:
        rows = np.arange(len(dataset))
        stored, done = None, 0
        for part in feature_batches(network, info, dataset, rows):
            if stored is None:
                shape = (len(rows), part.shape[1])
                stored = np.lib.format.open_memmap(draft / FEATURES, "w+", np.dtype(precision), shape)
            with np.errstate(over="ignore"):
                stored[done : done + len(part)] = part
            if not np.isfinite(stored[done : done + len(part)]).all():
                raise UserError(f"The features of the network are not finite in {precision}. Use float32.")
            done += len(part)
        if stored is None:
            raise UserError("The data set has no image.")
        stored.flush()
        bank = BankInfo(
            key=bank_key(models, dataset, precision),
            precision=precision,
            images=len(rows),
            width=stored.shape[1],
        )
        bank.write(draft / INFO)
    return bank


def feature_batches(
    network: Network, info: PixelStatistics, dataset: Dataset, rows: np.ndarray
) -> Iterator[np.ndarray]:
    """The features of some images, float32 [images, width], in parts in the order of `rows`.

    Args:
        network: in eval mode, on the device of the computation; its memory format is changed to channels_last.
        info: statistics of the pixels.
        dataset: the prepared data.
        rows: row numbers in the data set.
    """
    device = next(network.parameters()).device
    features = Features(network).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    loaded = count = images_per_pass(dataset.info.size)

    def batches() -> Iterator[Tensor]:
        for start in range(0, len(rows), loaded):
            yield gather(dataset, rows[start : start + loaded], device.type == "cuda")

    with Prefetcher(batches) as prefetched, torch.no_grad():
        for pixels in prefetched:
            parts, count = score_pixels(features, pixels, info, device, count, pad=False)
            yield torch.cat(parts).cpu().numpy()


def require_linear(network: Network) -> nn.Linear:
    """The classifier, if it is a linear layer on the pooled features.

    Raises:
        UserError: it is not.
    """
    part = classifier(network)
    if network.head is None and isinstance(part, nn.Linear):
        return part
    name = type(part).__name__
    raise UserError(
        f"A classifier on stored features must be one linear layer, but that of this network is {name}. Use "
        "model.head linear with a backbone of timm that ends in one."
    )
