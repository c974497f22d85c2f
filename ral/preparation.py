"""How images were prepared for a model, and what its training images look like."""

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from ral.records import Record


class Preparation(Record):
    """The parameters of the section preprocess that decide about the pixels of a prepared image."""

    size: int = Field(gt=0)
    """Height and width of a prepared image in pixels."""
    fit: Literal["stretch", "pad", "crop"] = "stretch"
    range: Literal["own", "percentile"] = "own"


class ImageProfile(Record):
    """What the training images look like, against which images are compared that the model is used on."""

    views: Mapping[str, int]
    """Training images by view."""
    image_mean: tuple[float, float]
    """Two quantiles of the mean of an image's pixels, in gray levels (`ral.data.prepare.PROFILE_QUANTILES`)."""
    image_deviation: tuple[float, float]
    """The same of the standard deviation of its pixels."""
