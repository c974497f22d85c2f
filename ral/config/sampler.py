"""Parameters of the sampler: which training images an epoch holds, and how often each."""

from typing import Literal

from pydantic import Field, model_validator

from ral.config.base import Section


class RepeatFactorOptions(Section):
    """Repeat-factor sampling (Gupta et al., LVIS, CVPR 2019)."""

    threshold: float = Field(default=0.01, gt=0, le=1)
    """Findings with a training prevalence f below this are repeated √(threshold / f) times. 0.01 is the
    CXR-LT 2026 winner's value and CXR-LT's tail limit (LVIS, 1,200 classes: 0.001)."""
    max_repeat: float = Field(default=10.0, ge=1)
    """Maximum repeat factor of an image, as for the CXR-LT 2026 winner. LVIS has no maximum; a finding
    with two images would then dominate the epoch."""


class TemperatureOptions(Section):
    """Temperature sampling with a decreasing temperature (Li et al., NAACL 2025, arXiv 2410.04579)."""

    start: float = Field(default=5.0, ge=1)
    """Temperature τ in the first epoch; a group of n images is sampled in proportion to n^(1/τ). 5 is
    usual in multilingual training, where the method comes from."""
    end: float = Field(default=1.0, ge=1)
    """Temperature at the end of the decrease. 1: the data distribution, each image once per epoch."""
    share: float = Field(default=0.5, ge=0, le=1)
    """Fraction of the epochs over which the temperature decreases, in equal steps. 0.5: rare findings
    early, then time to undo overfitting to repeated images."""

    @model_validator(mode="after")
    def _falls(self) -> "TemperatureOptions":
        if self.end > self.start:
            raise ValueError(f"end ({self.end}) must not be above start ({self.start})")
        return self


class SamplerConfig(Section):
    """Which images an epoch contains; ral/training/samplers.py defines an epoch for each sampler."""

    name: Literal["uniform", "inverse_frequency", "class_aware", "repeat_factor", "temperature"] = "uniform"
    """uniform: every image once. inverse_frequency: weighted by the rarest finding of an image.
    class_aware: every finding equally often. repeat_factor: every image, rare ones repeated.
    temperature: from class_aware-like to uniform, with decreasing temperature."""
    repeat_factor: RepeatFactorOptions = RepeatFactorOptions()
    """Options of repeat_factor."""
    temperature: TemperatureOptions = TemperatureOptions()
    """Options of temperature."""
