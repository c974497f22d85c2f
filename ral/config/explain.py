"""Parameters of the step explain: the gallery of hits and errors, and the diagnostics that need the network."""

from typing import Literal

from pydantic import Field

from ral.config.base import Section
from ral.config.evaluate import EvaluateConfig


class ExplainConfig(Section):
    """Heat maps, the images with the largest errors, and the geometry of the classifier."""

    show_images: bool = True
    """Whether image pixels may be shown. false (for data whose terms forbid it): the gallery lists image
    ids, logits and ranks, and no image is written."""
    per_kind: int = Field(default=3, ge=1, le=50)
    """Images per finding and kind (most confident true positives, most confident false positives, worst
    false negatives). The report shows those of them that lie beyond the threshold."""
    method: Literal["auto", "grad_cam", "rollout"] = "auto"
    """auto: rollout for transformers with global attention, else grad_cam. grad_cam: regions that raise
    the logit of the finding (Selvaraju et al., ICCV 2017). rollout: regions that reach the output
    through attention (Abnar and Zuidema, ACL 2020); identical for all findings. A heat map has at least
    7 × 7 positions: grad_cam uses an earlier layer if the last one is coarser; otherwise there is none."""
    thumbnail: int = Field(default=256, ge=16, le=512)
    """Maximum side length of a gallery image in pixels; the files of smaller images are not enlarged. The
    report shows an image at 240 pixels or more. 256 keeps the gallery of 14 findings below 8 MB."""
    confused: int = Field(default=3, ge=1)
    """A finding counts as confused with another if it is among this many top-ranked findings of an image.
    3, since most images with findings have one or two."""
    geometry_images: int = Field(default=2000, ge=100)
    """Maximum number of training images used for the class means: half drawn from all images, half from
    the positives of each finding."""
    threads: int = Field(default=2, ge=1)
    """Processor threads. A parameter because it affects rounding."""


class ExplainParams(Section):
    """Read by the step explain; of evaluate only `sealed`."""

    explain: ExplainConfig
    evaluate: EvaluateConfig
