"""Parameters of the step robustness: what the test images are changed by before the network scores them again."""

from typing import Annotated, Literal, TypeVar

from pydantic import Field, field_validator

from ral.config.base import Section
from ral.config.data import DataConfig, PreprocessConfig
from ral.config.evaluate import EvaluateConfig

Item = TypeVar("Item")

Percent = Annotated[float, Field(ge=0, le=50)]


class ShiftsConfig(Section):
    """Changes of the packed pixels, each at one or more strengths. A shift is named by kind and strength: jpeg_50."""

    jpeg: list[Annotated[int, Field(ge=1, le=100)]] = Field(default=[95, 75, 50, 30])
    """JPEG qualities: the image is compressed once and decoded."""
    bits: list[Annotated[int, Field(ge=1, le=8)]] = Field(default=[6, 4])
    """Bits per pixel, instead of 8."""
    blur: list[Percent] = Field(default=[1.0])
    """Gaussian blur: standard deviations, in percent of the image side."""
    noise: list[Annotated[float, Field(ge=0, le=255)]] = Field(default=[5.0, 10.0])
    """Gaussian noise, drawn for each image: standard deviations in gray levels of 255."""
    gamma: list[Annotated[float, Field(gt=0, le=10)]] = Field(default=[0.7, 1.4])
    """Exponents of the gray levels: below 1 brighter, above 1 darker."""
    downscale: list[Annotated[int, Field(ge=1, le=16)]] = Field(default=[2])
    """Factors by which the image is reduced and enlarged again: 2 is half the resolution."""
    rotate: list[Annotated[float, Field(ge=-45, le=45)]] = Field(default=[5.0, 10.0])
    """Rotations in degrees, counterclockwise; the corners become black."""
    corners: list[Percent] = Field(default=[15.0])
    """Masked corners, where side markers and text are: side of each black square, in percent of the image side."""
    flip: bool = True
    """Left and right exchanged; also the source of the flip audit."""
    pad: bool = True
    """Black borders instead of stretching to a square (preprocess.fit: stretch). The source images of the test split
    are decoded again, which takes a while for a large archive."""

    @field_validator("*")
    @classmethod
    def _once(cls, values: object) -> object:
        if isinstance(values, list) and len(set(values)) < len(values):
            raise ValueError("a strength is listed twice")
        return values


class AttacksConfig(Section):
    """Adversarial attacks: each test image is changed within a few gray levels so that its score becomes worse, for
    each finding on its own and for all at once."""

    eps: list[Annotated[float, Field(gt=0, le=255)]] = Field(default=[1.0, 2.0])
    """Largest changes of a pixel, in gray levels of 255; an empty list: no attacks."""
    steps: int = Field(default=5, ge=1)
    """Gradient steps of an attack, each of 2.5 eps / steps gray levels."""
    images: int | None = Field(default=1000, ge=2)
    """Number of test images that are attacked, drawn by the seed; null: all. The attacks take findings × steps × eps
    forward and backward passes per image."""

    @field_validator("eps")
    @classmethod
    def _once(cls, values: list[float]) -> list[float]:
        return _distinct(values)


class ProbesConfig(Section):
    """Shortcut probes: what else than findings the network's features tell, and whether findings are still recognised
    among images that do not differ in it."""

    attributes: list[Literal["source", "file_type", "view", "sex", "age"]] = Field(
        default=["source", "file_type", "view", "sex", "age"]
    )
    """Attributes to predict from the features; an empty list: no probes. Those that the data does not have, or of
    which it has one value, are left out."""
    folds: int = Field(default=5, ge=2)
    """Folds of the cross-validation by patient."""
    l2: float = Field(default=0.01, gt=0)
    """Weight of the penalty ½ |w|² of the logistic regression, for standardised features."""

    @field_validator("attributes")
    @classmethod
    def _once(cls, values: list[str]) -> list[str]:
        return _distinct(values)


def _distinct(values: list[Item]) -> list[Item]:
    if len(set(values)) < len(values):
        raise ValueError("a value is listed twice")
    return values


class RobustnessConfig(Section):
    """How much changed images change the results. Off by default: it scores the test images once per shift."""

    enabled: bool = False
    """Whether the step computes anything; false: it writes an empty result."""
    shifts: ShiftsConfig = ShiftsConfig()
    attacks: AttacksConfig = AttacksConfig()
    probes: ProbesConfig = ProbesConfig()
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Random seed of the noise, each image having its own, so that no image depends on others; of the images that are
    attacked; and of the probes' folds."""
    threads: int = Field(default=2, ge=1)
    """Processor threads. A parameter because it affects rounding."""


class RobustnessParams(Section):
    """Read by the step robustness; data and preprocess for the shift `pad`, which reads source images."""

    data: DataConfig
    preprocess: PreprocessConfig
    evaluate: EvaluateConfig
    robustness: RobustnessConfig = RobustnessConfig()
