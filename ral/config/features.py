"""Parameters of the step features, which stores what the classifier reads."""

from typing import Literal

from pydantic import Field

from ral.config.base import Section


class FeaturesConfig(Section):
    """The feature bank of the trained network, data/features; `python -m ral.training.refit` reads it."""

    precision: Literal["float32", "float16"] | None = None
    """Precision of the stored features; null: off, no features are written. Four bytes (float16: two) per feature
    and image. float32 for a model that is released."""
    threads: int = Field(default=2, ge=1)
    """Processor threads. A parameter because it affects rounding."""


class FeaturesParams(Section):
    """Read by the step features."""

    features: FeaturesConfig = FeaturesConfig()
