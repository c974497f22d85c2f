"""Parameters of the sampler: which training images an epoch holds, and how often each."""

from typing import Literal

from pydantic import Field, model_validator

from ral.config.base import Section


class RepeatFactorOptions(Section):
    """Repeat-factor sampling (Gupta et al., LVIS, CVPR 2019)."""

    threshold: float = Field(default=0.01, gt=0, le=1)
    """Findings on a smaller share f of the training images are repeated √(threshold / f) times. 0.01, 1 % of the images, is the CXR-LT 2026 winner's (LVIS with its 1,200 classes: 0.001) and CXR-LT's bound of the tail."""
    max_repeat: float = Field(default=10.0, ge=1)
    """Most often that an image is repeated, as the CXR-LT 2026 winner had it; LVIS has no bound, and a finding with two images would fill the epoch with them."""


class TemperatureOptions(Section):
    """Temperature sampling that cools down (Li et al., NAACL 2025, arXiv 2410.04579)."""

    start: float = Field(default=5.0, ge=1)
    """Temperature τ of the first epoch; a group of n images gets n^(1/τ) shares. 5 is the usual setting of multilingual training, where the method is from."""
    end: float = Field(default=1.0, ge=1)
    """Temperature at the end of the cooling. 1 is the data as they are, each image once an epoch."""
    share: float = Field(default=0.5, ge=0, le=1)
    """Share of the epochs over which the temperature falls, in equal steps. Half: rare findings early, and time after it to forget what repetition overfitted."""

    @model_validator(mode="after")
    def _falls(self) -> "TemperatureOptions":
        if self.end > self.start:
            raise ValueError(f"end ({self.end}) must not be above start ({self.start})")
        return self


class SamplerConfig(Section):
    """Which images an epoch holds; ral/training/samplers.py says for each sampler what an epoch is."""

    name: Literal["uniform", "inverse_frequency", "class_aware", "repeat_factor", "temperature"] = "uniform"
    """uniform: every image once. inverse_frequency: by the rarest finding of an image. class_aware: every finding equally often. repeat_factor: every image, rare ones repeated. temperature: between class_aware and uniform, cooling."""
    repeat_factor: RepeatFactorOptions = RepeatFactorOptions()
    """Options of repeat_factor."""
    temperature: TemperatureOptions = TemperatureOptions()
    """Options of temperature."""
