"""Parameters of the step explain: the gallery of hits and errors, and the diagnostics that need the network."""

from typing import Literal

from pydantic import Field

from ral.config.base import Section
from ral.config.evaluate import EvaluateConfig


class ReviewConfig(Section):
    """List of training labels that look wrong, for a person to check; nothing is changed by it."""

    labels: int = Field(default=20, ge=1)
    """Maximum number of labels per finding."""
    folds: int = Field(default=5, ge=2)
    """Folds of patients: the probability of a finding comes from a classifier that saw no image of the patient."""
    neighbours: int = Field(default=20, ge=1)
    """Neighbours of the local outlier factor among the positives of a finding (scikit-learn's default)."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Random seed of the folds."""


class ExplainConfig(Section):
    """Heat maps, the images with the largest errors, and the geometry of the classifier."""

    show_images: bool = True
    """Whether image pixels may be shown. false (for data whose terms forbid it): the gallery lists image
    ids, logits and ranks, and no image is written."""
    per_kind: int = Field(default=3, ge=1, le=50)
    """Images per finding and kind (most confident true positives, most confident false positives, worst
    false negatives). The report shows those of them that lie beyond the threshold."""
    method: Literal["auto", "grad_cam", "rollout", "csra", "ml_decoder"] = "auto"
    """auto: rollout for transformers with global attention, unless the head is csra; else grad_cam. grad_cam:
    regions that raise the logit of the finding (Selvaraju et al., ICCV 2017). rollout: regions that reach the output
    through attention (Abnar and Zuidema, ACL 2020); identical for all findings. csra, ml_decoder: what each
    position adds to the logit in that head, or the attention of the finding's query. A heat map has at least
    7 × 7 positions: grad_cam uses an earlier layer if the last one is coarser; otherwise there is none.
    docs/localisation.md has the measurements."""
    layer: str | None = None
    """Layer of the backbone for grad_cam, as timm names it (layer3); null: the last with at least 7 × 7
    positions. With boxes (data.boxes), the report compares the layers."""
    thumbnail: int = Field(default=256, ge=16, le=512)
    """Maximum side length of a gallery image in pixels; the files of smaller images are not enlarged. The
    report shows an image at 240 pixels or more. 256 keeps the gallery of 14 findings below 8 MB."""
    confused: int = Field(default=3, ge=1)
    """A finding counts as confused with another if it is among this many top-ranked findings of an image.
    3, since most images with findings have one or two."""
    geometry_images: int = Field(default=2000, ge=100)
    """Maximum number of training images used for the class means: half drawn from all images, half from
    the positives of each finding."""
    review: ReviewConfig | None = None
    """Suspicious training labels, in gallery/label_review.csv and in the report; null: off, since it needs the
    features of all training images."""
    threads: int = Field(default=2, ge=1)
    """Processor threads. A parameter because it affects rounding."""


class ExplainParams(Section):
    """Read by the step explain; of evaluate only `sealed` and what the intervals of the heat maps need."""

    explain: ExplainConfig
    evaluate: EvaluateConfig
