"""A trained model with another linear classifier, written as the step train writes a model."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ral.data.dataset import Dataset
from ral.files import atomic_directory, write_json
from ral.inference.bank import require_linear
from ral.inference.score import ap_and_auroc, estimable_findings
from ral.models.load import load_network, read_weights
from ral.records import Record
from ral.training.bank_phase import with_head
from ral.training.outputs import SPLITS, write_logits, write_weights
from ral.training.second_phase.bank import Bank
from ral.training.second_phase.base import LinearHead
from ral.training.state import DECIMALS


def bank_of(dataset: Dataset, features: np.ndarray) -> Bank:
    """Features [images, width] with the labels, patients and splits of the data set."""
    studies = dataset.studies
    return Bank(
        features,
        dataset.targets().astype(np.float64),
        studies["patient_id"].to_numpy().astype(str),
        studies["split"].to_numpy().astype(str),
        dataset.uncertain(np.arange(len(dataset))),
    )


class SecondPhaseInfo(Record):
    """Content of second_phase.json: how the classifier was refitted."""

    method: str
    options: Mapping[str, object]
    seed: int
    precision: str
    """Of the features."""


def write_model(
    models: Path,
    out: Path,
    dataset: Dataset,
    features: np.ndarray,
    head: LinearHead,
    how: SecondPhaseInfo,
    min_positives: int,
) -> None:
    """Write the network with another head, in the layout of the step train without history and epochs' weights.

    Args:
        models: output folder of the step train, with the network.
        out: folder to write.
        dataset: the prepared data.
        features: of all its images [images, width].
        head: for these features.
        how: the head was fitted.
        min_positives: evaluate.min_positives, for the findings that validation.json averages over.

    Raises:
        UserError: see `with_head` and `estimable_findings`.
    """
    network, info = load_network(models)
    part = require_linear(network)
    name = next(name for name, module in network.named_modules() if module is part)
    weights = with_head(read_weights(models / "model.safetensors"), name, head)
    data = "phantom" if info.phantom else "images"
    logits = {
        split: head.logits(features[dataset.rows(split)].astype(np.float64)).astype(np.float32)
        for split in SPLITS
    }
    with atomic_directory(out) as draft:
        write_weights(draft / "model.safetensors", weights, data)
        info.write(draft / "model.json")
        how.write(draft / "second_phase.json")
        for split, values in logits.items():
            write_logits(dataset, dataset.rows(split), values, draft / "logits" / f"{split}.parquet")
        metrics = _validation(dataset, logits["val"], min_positives)
        write_json(draft / "validation.json", {"val": {"data": data, **metrics}})


def _validation(dataset: Dataset, logits: np.ndarray, min_positives: int) -> dict[str, float]:
    """Macro AP and AUROC on validation, rounded as those of a training."""
    rows = dataset.rows("val")
    targets = dataset.targets(rows)
    used = estimable_findings(targets, dataset.column("patient_id", rows), min_positives)
    ap, auroc = ap_and_auroc(targets[:, used], logits[:, used]).mean(axis=1).tolist()
    return {"ap": round(ap, DECIMALS), "auroc": round(auroc, DECIMALS)}
