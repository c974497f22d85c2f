"""Parameters of the step explain: the gallery of hits and errors, and the diagnostics that need the network."""

from typing import Literal

from pydantic import Field

from ral.config.base import Section
from ral.config.evaluate import EvaluateConfig


class ExplainConfig(Section):
    """What the network looked at, which images it got wrong, and the geometry of its classifier."""

    show_images: bool = True
    """Whether images may be shown. false, for data whose terms forbid it: the gallery has image ids, logits and ranks, and no picture is written."""
    per_kind: int = Field(default=3, ge=1, le=50)
    """Images per finding and kind: most confident hits, most confident false positives, worst misses. 3 fit side by side."""
    method: Literal["auto", "grad_cam", "rollout"] = "auto"
    """auto: rollout for transformers whose tokens all attend to each other, else grad_cam. grad_cam: which places raise the logit of the finding (Selvaraju et al., ICCV 2017). rollout: which places reach the output through attention (Abnar and Zuidema, ACL 2020); it is the same for every finding."""
    thumbnail: int = Field(default=128, ge=16, le=512)
    """Longest side of a picture in pixels; smaller images are not enlarged. 128 keeps the gallery of 14 findings below 5 MB."""
    confused: int = Field(default=3, ge=1)
    """A finding counts as confused with another when it is among this many highest ranked findings of an image. 3, since an image with findings mostly has one or two."""
    geometry_images: int = Field(default=2000, ge=100)
    """Most training images whose features are computed for the class means: half for all images, half shared out to the positives of each finding."""
    threads: int = Field(default=2, ge=1)
    """Processor threads. A parameter, since rounding depends on it."""


class ExplainParams(Section):
    """Read by the step explain; of evaluate only `sealed`."""

    explain: ExplainConfig
    evaluate: EvaluateConfig
