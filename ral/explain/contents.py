"""gallery.json and geometry.json, as the step explain writes them and as the report reads them."""

from typing import ClassVar, Literal

from ral.labels import Data
from ral.records import Record

Method = Literal["grad_cam", "rollout", "csra", "ml_decoder"]
Requested = Literal["auto", "grad_cam", "rollout", "csra", "ml_decoder"]
Kind = Literal["hits", "false_positives", "misses"]
KINDS: tuple[Kind, ...] = ("hits", "false_positives", "misses")


class GalleryImage(Record):
    """An image selected for a finding; what belongs to its pictures is only written if images may be shown."""

    image_id: str
    logit: float
    """Raw logit of the finding."""
    rank: int
    """Rank among the images with a known label, 1 for the highest logit."""
    image: str | None = None
    """File name of the image."""
    labels: tuple[str, ...] = ()
    """Findings of the image."""
    unknown: tuple[str, ...] = ()
    """Findings whose label is unknown."""
    map: str | None = None
    """File name of the heat map on the image."""
    empty_map: bool = False
    """Whether no region raises the logit."""
    boxes: tuple[tuple[float, float, float, float], ...] = ()
    """Boxes of the finding: left, top, right and bottom as shares of the side."""


class GalleryFinding(Record):
    """The images selected for a finding, and the number of candidates."""

    finding: str
    positives: int
    negatives: int
    unknown: int
    note: str | None
    """Why a list is empty; None if all lists have images."""
    hits: tuple[GalleryImage, ...]
    false_positives: tuple[GalleryImage, ...]
    misses: tuple[GalleryImage, ...]

    def images(self, kind: Kind) -> tuple[GalleryImage, ...]:
        """The images of a kind."""
        return {"hits": self.hits, "false_positives": self.false_positives, "misses": self.misses}[kind]


Reason = Literal["predicted otherwise", "outlier"]


class SuspiciousLabel(Record):
    """A training label that looks wrong."""

    finding: str
    image_id: str
    label: int
    """1 or 0."""
    reasons: tuple[Reason, ...]
    probability: float | None
    """Of the finding, from a classifier that saw no image of the patient; None: not estimable."""
    outlier_factor: float | None
    """Local outlier factor among the positives of the finding; None for negatives."""


class HeatMaps(Record):
    """How the heat maps were made; only written if images may be shown."""

    method: Method | None = None
    """None: there are no heat maps."""
    layer: str | None = None
    """Grad-CAM: module whose feature map is used; None: the last feature map before pooling."""
    reason: str | None = None
    """Why there are no heat maps, or why an earlier layer is used."""
    positions: tuple[int, int] | None = None
    """Rows and columns of a heat map."""
    colours: str | None = None
    """Name of the colormap."""
    image_size: int | None = None
    picture_size: int | None = None
    """Side of the pictures, in pixels."""


class Gallery(HeatMaps):
    """Content of gallery.json."""

    if_damaged: ClassVar[str] = "Run `dvc repro explain`."

    notice: str
    data: Data
    images: bool
    """Whether images may be shown."""
    per_kind: int
    """Maximum number of images of a kind."""
    findings: tuple[GalleryFinding, ...]
    review: tuple[SuspiciousLabel, ...] | None = None
    """Training labels that look wrong; None: not requested."""


class MeanCosines(Record):
    """Mean cosines between the vectors of two halves of the findings; None if there is none."""

    common: float | None
    """Within the more frequent half."""
    rare: float | None
    """Within the rarer half."""
    common_to_rare: float | None


class Vectors(Record):
    """Cosine similarities of one vector per finding, ordered by prevalence."""

    cosines: tuple[tuple[float | None, ...], ...] | None = None
    """None: there is no vector per finding."""
    mean_cosine: MeanCosines | None = None
    not_available: str | None = None
    """Why there are no vectors."""


class FindingGeometry(Record):
    """Variability of the features of a finding's training images, and the classifier's vector of it."""

    finding: str
    train_prevalence: float
    train_positives: int
    images: int
    """Number of images whose features were used."""
    within: float | None
    between: float | None
    variability: float | None
    """within / between."""
    weight_norm: float | None = None
    """Length of the classifier's vector; None if it has none."""
    alignment: float | None = None
    """Cosine of the classifier's vector and the class mean."""
    ideal_weight_norm: float | None = None
    """Length of the classifier's vector at the ideal of `Collapse`, which has the same mean square length."""


class Collapse(Record):
    """Distance to the closed-form ideal of neural collapse (squared loss, weight decay); see `ral.explain.collapse`."""

    vanishing: float
    """Positive training images below which a finding that occurs with no other would have no direction (t²); fitted."""
    classifier_distance: float
    """Distance of the classifier's Gram matrix to the ideal: 0 same shape, 1.41 nothing in common."""
    class_means_distance: float | None
    """The same for the class means; None if a finding has no image."""


class Geometry(Record):
    """Content of geometry.json."""

    if_damaged: ClassVar[str] = "Run `dvc repro explain`."

    notice: str
    data: Data
    not_available: str | None = None
    """Why the network has no features to analyse; all that follows is then missing."""
    images: int = 0
    width: int = 0
    """Length of a vector."""
    findings: tuple[FindingGeometry, ...] = ()
    """The most frequent finding first."""
    class_means: Vectors = Vectors()
    classifier: Vectors = Vectors()
    collapse: Collapse | None = None
    """None: there is no vector per finding."""
