"""The outputs of the step train: weights, model.json, history, validation metrics, raw logits."""

import csv
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from torch import Tensor

from ral.config.train import TrainParams
from ral.data.dataset import Dataset
from ral.errors import UserError
from ral.files import follow_umask, write_json
from ral.models.info import MODEL_INFO, ModelInfo
from ral.training.checkpoint import save_tensors
from ral.training.state import HISTORY, TrainState
from ral.user_code import files_in_use

# The splits whose logits are written.
SPLITS = ("val", "test")


@dataclass(frozen=True)
class TrainResult:
    """What a finished training has to write."""

    params: TrainParams
    dataset: Dataset
    state: TrainState
    """Final state, with the history and the best weights of each kind."""
    pretrained_sha256: str | None
    """SHA-256 of the file of pretrained weights; None without."""
    validation_findings: int
    """Number of findings that validation metrics are averaged over."""
    logits: Mapping[str, np.ndarray]
    """Raw logits of the best weights by split, float32 [rows of the split, findings]."""

    def info(self) -> ModelInfo:
        """The content of model.json."""
        kind, data = self.state.best_kind(), self.dataset.info
        return ModelInfo(
            model=self.params.model,
            pretrained_sha256=self.pretrained_sha256,
            findings=self.dataset.findings,
            size=data.size,
            pixel_mean=data.pixel_mean,
            pixel_deviation=data.pixel_deviation,
            network_code=files_in_use(self.params.model_dump())["network"],
            loss=self.params.loss.title,
            preparation=data.preparation,
            profile=data.profile,
            weights=kind,
            best_epoch=self.state.best[kind].epoch,
            validation_findings=self.validation_findings,
            phantom=data.phantom,
        )


def write_outputs(out: Path, result: TrainResult) -> None:
    """Write all outputs of the step train.

    Raises:
        UserError: logits are not finite.
    """
    dataset, state = result.dataset, result.state
    for split, logits in result.logits.items():
        if not np.isfinite(logits).all():
            raise UserError(
                f"The selected weights give non-finite logits on {split}. Lower train.learning_rate.",
                kind="not_finite",
            )
        write_logits(dataset, dataset.rows(split), logits, out / "logits" / f"{split}.parquet")
    data = "phantom" if dataset.info.phantom else "images"
    (out / "weights").mkdir(exist_ok=True)
    for kind, best in state.best.items():
        if best.weights:
            write_weights(out / "weights" / f"{kind}.safetensors", best.weights, data)
    write_weights(out / "model.safetensors", state.best_weights(), data)
    result.info().write(out / MODEL_INFO)
    kind = state.best_kind()
    # What `dvc exp show` and `dvc metrics show` print: few, and short names.
    metrics = state.history[state.best[kind].epoch - 1].scores(kind)
    write_json(out / "validation.json", {"val": {"data": data, **metrics}})
    write_history(out / "history.csv", state, data)


def write_history(path: Path, state: TrainState, data: str) -> None:
    """Write a row per epoch; the last column says whether the images are phantom images."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        table = csv.DictWriter(stream, [*HISTORY, "data"], lineterminator="\n")
        table.writeheader()
        table.writerows({**asdict(record), "data": data} for record in state.history)


def write_weights(path: Path, weights: Mapping[str, Tensor], data: str) -> None:
    """Write weights as a safetensors file with the usual permissions."""
    tensors = {name: tensor.contiguous() for name, tensor in weights.items()}
    # Only one metadata entry: safetensors writes several in random order, which would change the bytes
    # between runs.
    save_tensors(tensors, path, {"trained_on": f"{data}; research, not a medical device"})
    follow_umask(path)  # safetensors creates it with mode 0600


def write_logits(dataset: Dataset, rows: np.ndarray, values: np.ndarray, path: Path) -> None:
    """Write image_id and one float32 column of raw logits per finding."""
    table = pd.DataFrame(values, columns=list(dataset.findings))
    table.insert(0, "image_id", dataset.image_ids(rows))
    path.parent.mkdir(exist_ok=True)
    table.to_parquet(path, index=False)
