"""The second phase on stored features: the features of the training images once, then the best classifier for them."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from ral.config.train import ClassifierConfig, TrainParams
from ral.data.dataset import Dataset
from ral.errors import UserError
from ral.inference.bank import feature_batches, require_linear
from ral.inference.score import Scorer
from ral.training.second_phase.bank import Bank
from ral.training.second_phase.base import LinearHead
from ral.training.state import EpochRecord, TrainState


@dataclass(frozen=True)
class Refitted:
    """Weights with the refitted classifier."""

    weights: dict[str, Tensor]
    """On the CPU."""
    record: EpochRecord
    """Their row of the history; the loss is the mean BCE of the known training labels, without weights."""
    images: int
    """Training images."""
    seconds: float


def refit(params: TrainParams, dataset: Dataset, scorer: Scorer, state: TrainState) -> Refitted:
    """Refit the classifier on the features of the training images. All ranks must call it; all get the same result.

    Args:
        params: train.classifier has features: bank.
        dataset: the prepared data.
        scorer: its network, rank and device compute the features.
        state: has the best weights so far.

    Raises:
        UserError: the classifier is not one linear layer with a bias, the method needs labels that the data do not
            have, or memory does not suffice for one image.
    """
    from ral.training.second_phase.registry import (
        build_second_phase,
    )  # imports scikit-learn, which takes seconds

    started, weights = time.monotonic(), state.best_weights()
    second = params.train.classifier
    assert second is not None, "the phase exists only with train.classifier"
    rows = dataset.rows("train")
    phase = build_second_phase(second.method, options(second))
    features = _gathered(dataset, scorer, weights, rows)
    linear = require_linear(scorer.network)
    name = next(name for name, module in scorer.network.named_modules() if module is linear)
    targets = dataset.targets(rows).astype(np.float64)
    patients = dataset.column("patient_id", rows).astype(str)
    bank = Bank(features, targets, patients, np.full(len(rows), "train"), dataset.uncertain(rows))
    with threadpool_limits(params.train.threads):
        head = phase.fit(bank, params.train.seed)
        z = head.logits(features.astype(np.float64))
    known = ~np.isnan(targets)
    loss = float((np.logaddexp(0, z) - np.nan_to_num(targets) * z)[known].mean())
    record = EpochRecord(len(state.history) + 1, "classifier", 0.0, loss, 0)
    return Refitted(with_head(weights, name, head), record, len(rows), time.monotonic() - started)


def options(second: ClassifierConfig) -> Mapping[str, object]:
    """The options of the method that the section train.classifier asks for."""
    if second.method != "crt":
        return second.options
    return {"l2": second.l2, "sampler": second.sampler, "epochs": second.epochs}


def with_head(weights: Mapping[str, Tensor], name: str, head: LinearHead) -> dict[str, Tensor]:
    """Weights of a network whose classifier's tensors are `name`.weight and `name`.bias, with another head.

    Raises:
        UserError: the classifier has no bias.
    """
    if f"{name}.bias" not in weights:
        raise UserError(f"The classifier {name} has no bias; the second phase needs one.")
    new = {"weight": head.weight, "bias": head.bias}
    return dict(weights) | {
        f"{name}.{part}": torch.from_numpy(values).to(weights[f"{name}.{part}"].dtype)
        for part, values in new.items()
    }


def _gathered(dataset: Dataset, scorer: Scorer, weights: dict[str, Tensor], rows: np.ndarray) -> np.ndarray:
    """The features of `rows` float32 [rows, width], each computed on one rank and gathered on every rank."""
    scorer.network.load_state_dict(weights)
    local_rows = np.array_split(rows, scorer.world)[scorer.rank]
    parts = list(feature_batches(scorer.network, dataset.info, dataset, local_rows))
    if scorer.world == 1:
        return np.concatenate(parts)
    gathered: list[Any] = [None] * scorer.world
    torch.distributed.all_gather_object(gathered, parts)
    return np.concatenate([part for rank in gathered for part in rank])
