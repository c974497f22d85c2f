"""Parameters of the model and the training."""

from typing import Literal

from pydantic import Field, model_validator

from ral.config.base import Section
from ral.config.losses import LossConfig
from ral.config.model import ModelConfig


class AugmentConfig(Section):
    """Random changes to a training film, drawn anew in every epoch; zero turns one off."""

    flip: float = Field(ge=0, le=1)
    """Chance of a left-right flip."""
    rotate: float = Field(ge=0, le=180)
    """Largest rotation, degrees either way."""
    shift: float = Field(ge=0, le=0.5)
    """Largest shift, as a share of the film's side."""
    zoom: float = Field(ge=0, lt=1)
    """Largest change of scale, either way."""


class TrainConfig(Section):
    """How the network is trained."""

    epochs: int = Field(ge=1)
    """Passes over the training films."""
    batch_size: int = Field(ge=2)
    """Films per optimizer step over all processes together (the global batch)."""
    micro_batch: int | None = Field(default=None, ge=1)
    """Films per process and backward pass; smaller needs less memory. null: the process's whole share."""
    learning_rate: float = Field(gt=0)
    """Peak learning rate of AdamW."""
    weight_decay: float = Field(ge=0)
    """Weight decay of AdamW."""
    warmup: float = Field(ge=0, lt=1)
    """Share of all steps in which the learning rate rises; afterwards it falls along a cosine to zero."""
    clip_norm: float = Field(gt=0)
    """Largest norm of the gradient; a longer one is scaled down to it."""
    precision: Literal["float32", "bfloat16"]
    """Arithmetic of the network; the loss is float32 in either case."""
    zero_stage: Literal[0, 1, 2]
    """DeepSpeed ZeRO stage: what is shared out between processes instead of held by each."""
    threads: int = Field(ge=1)
    """Processor threads of a training process. A parameter, since rounding depends on it."""
    seed: int = Field(ge=0, lt=2**31)
    """Seed of the initial weights, the order of films and the augmentation."""
    augment: AugmentConfig
    """Random changes to a training film."""

    @model_validator(mode="after")
    def _possible(self) -> "TrainConfig":
        if self.precision == "bfloat16" and self.zero_stage == 0:
            raise ValueError("precision bfloat16 needs zero_stage 1 or 2 (stage 0 keeps no float32 weights)")
        if self.micro_batch and self.batch_size % self.micro_batch:
            raise ValueError(f"micro_batch ({self.micro_batch}) must divide batch_size ({self.batch_size})")
        return self


class TrainParams(Section):
    """Read by the step train."""

    model: ModelConfig
    loss: LossConfig
    train: TrainConfig
