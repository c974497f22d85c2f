"""What a trained model is, model.json: the network, its outputs, the images that it was trained on."""

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ral.config.base import explain
from ral.config.model import ModelConfig
from ral.errors import UserError
from ral.files import read_json, write_json
from ral.preparation import ImageProfile, Preparation

MODEL_INFO = "model.json"


class ModelInfo(BaseModel):
    """The content of model.json. Keys with a default are missing in models of earlier versions."""

    # Later versions may add keys.
    model_config = ConfigDict(extra="ignore", frozen=True)

    model: ModelConfig
    """The section model of params.yaml."""
    findings: tuple[str, ...]
    """Names of the outputs, in order."""
    size: int
    """Height and width of an image in pixels."""
    pixel_mean: float
    """Mean of the training pixels, in gray levels; with `pixel_deviation` it standardises images."""
    pixel_deviation: float
    """Standard deviation of the training pixels, in gray levels."""
    phantom: bool
    """Whether the training images are phantom images."""
    pretrained_sha256: str | None = None
    """SHA-256 of the file of pretrained weights; None without."""
    network_code: dict[str, str] = Field(default_factory=dict)
    """The files of the user's own network, by path -> SHA-256; empty for a network of timm."""
    loss: str | None = None
    """Title of the loss."""
    preparation: Preparation | None = None
    """How images are prepared for this model."""
    profile: ImageProfile | None = None
    """What the training images look like."""
    weights: Literal["last", "ema"] | None = None
    """The kind of weights: as trained, or their moving average."""
    best_epoch: int | None = None
    """The epoch of the weights, from 1 over all phases."""
    validation_findings: int | None = None
    """Number of findings that validation metrics were averaged over."""
    outputs: str = "raw logits; their sigmoid is not a probability"
    """What the outputs mean, for people."""

    def write(self, path: Path) -> None:
        """Write model.json."""
        write_json(path, self.to_json())

    def to_json(self) -> dict[str, Any]:
        """The content of model.json as plain values."""
        return self.model_dump(mode="json")


def read_model_info(folder: Path) -> ModelInfo:
    """Read `folder`/model.json.

    Raises:
        UserError: it is missing or corrupt, lacks a key or has a wrong value.
    """
    path = folder / MODEL_INFO
    if not path.is_file():
        raise UserError(
            f"{path} does not exist. Train first (dvc repro train), or pass the output folder of the step train."
        )
    try:
        content = read_json(path)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is corrupt ({error}). Restore it (dvc checkout), or train again.") from None
    try:
        return ModelInfo.model_validate(content)
    except ValidationError as error:
        missing = [
            str(item["loc"][0])
            for item in error.errors()
            if item["type"] == "missing" and len(item["loc"]) == 1
        ]
        if missing or not isinstance(content, dict):
            raise UserError(
                f"{path} is not a valid model.json: missing {', '.join(missing) or 'all keys'}."
            ) from None
        raise UserError(explain(error, ModelInfo, path)) from None
