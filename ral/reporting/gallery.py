"""The report's gallery: embedded pictures of the most confident hits and false alarms, and of the worst misses.

gallery.json lists candidates by rank. A hit or a false alarm has a calibrated score at or above the threshold, a miss
one below it; the others are left out. A finding without a threshold has neither: its images are listed by score alone.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from ral.config.evaluate import Rule
from ral.evaluation.calibration_io import SavedCalibration, SavedFinding
from ral.evaluation.table_rows import OperatingRow
from ral.explain.contents import Gallery, GalleryFinding, GalleryImage, Kind, SuspiciousLabel
from ral.labels import marked
from ral.reporting.plots import plain
from ral.reporting.tables import Table
from ral.wording import number, pluralize

# Kind in gallery.json -> name in the report, with and without a threshold.
KINDS: dict[Kind, str] = {"hits": "Hits", "false_positives": "False alarms", "misses": "Misses"}
RANKED = {
    "hits": "Positive, highest scores",
    "false_positives": "Negative, highest scores",
    "misses": "Positive, lowest scores",
}
ONE = {"hits": "a hit", "false_positives": "a false alarm", "misses": "a miss"}
RANKED_ONE = {"hits": "positive", "false_positives": "negative", "misses": "positive"}
NONE = {
    "hits": "No positive test image reaches the threshold.",
    "false_positives": "No negative test image reaches the threshold.",
    "misses": "Every positive test image reaches the threshold.",
}
# Limit for the base64 size of all pictures; leaves enough of the page's 15 MB for the rest.
MAX_BYTES = 11_000_000


@dataclass(frozen=True)
class Candidate:
    """An image of gallery.json on its side of the threshold."""

    content: GalleryImage
    """Its entry in gallery.json."""
    score: float | None
    """Calibrated score; None if the finding has no calibration map."""


@dataclass(frozen=True)
class Selected:
    """The images of one finding that the report shows."""

    content: GalleryFinding
    """Its entry in gallery.json."""
    threshold: float | None
    """Threshold of the calibrated scores; None if there is none."""
    kinds: dict[Kind, list[Candidate]]


@dataclass(frozen=True)
class Picture:
    """A picture embedded in the page."""

    uri: Markup
    alt: str
    boxes: tuple[tuple[float, float, float, float], ...] = ()
    """Left, top, width and height of the boxes to draw, in per cent of the side."""


@dataclass(frozen=True)
class ShownImage:
    """An image of the gallery, with its captions and pictures."""

    image_id: str
    score: str
    rank: str
    labels: str
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class ShownKind:
    """The hits, false alarms or misses of a finding."""

    title: str
    images: list[ShownImage]
    none: str
    """Sentence to show if there are no images; may be empty."""


@dataclass(frozen=True)
class Part:
    """The gallery of one finding."""

    finding: str
    counts: str
    """Number of images of each kind; empty without a threshold."""
    note: str
    kinds: list[ShownKind]


@dataclass(frozen=True)
class ShownGallery:
    """The content of gallery.json that the report shows."""

    parts: list[Part]
    maps: str
    """What the heat maps show, or why there are none."""
    omitted: int
    """Number of images without pictures, to limit the size of the page."""


def select(content: Gallery, calibration: SavedCalibration, rule: Rule) -> list[Selected]:
    """The images of gallery.json beyond the threshold of a rule; all of a finding that has no threshold.

    Args:
        content: gallery.json.
        calibration: calibration.json.
        rule: threshold rule.
    """
    return [_select(finding, calibration.findings.get(finding.finding), rule) for finding in content.findings]


def _select(finding: GalleryFinding, saved: SavedFinding | None, rule: Rule) -> Selected:
    threshold = saved.thresholds.get(rule) if saved else None
    candidates = {
        kind: [Candidate(image, _calibrated(image.logit, saved)) for image in finding.images(kind)]
        for kind in KINDS
    }
    if threshold is None:
        shown = {candidate.content.image_id for candidate in candidates["hits"]}
        candidates["misses"] = [
            candidate for candidate in candidates["misses"] if candidate.content.image_id not in shown
        ]
        return Selected(finding, None, candidates)
    kinds = {
        kind: [
            candidate
            for candidate in several
            if candidate.score is not None and (candidate.score < threshold) == (kind == "misses")
        ]
        for kind, several in candidates.items()
    }
    return Selected(finding, threshold, kinds)


def _calibrated(logit: float, saved: SavedFinding | None) -> float | None:
    return float(saved.map.apply(np.array([logit]))[0]) if saved else None


def gallery(
    content: Gallery,
    selected: list[Selected],
    operating: Sequence[OperatingRow],
    pictures: Mapping[str, bytes],
    phantom: bool,
    max_bytes: int = MAX_BYTES,
) -> ShownGallery:
    """The gallery with its pictures, which are embedded in the order of their rank until `max_bytes` are used.

    Args:
        content: gallery.json of a run that may show images.
        selected: its images that are shown.
        operating: the rows of operating.csv for the rule of the thresholds.
        pictures: JPEG files by their names in gallery.json.
        phantom: whether the alternative texts are marked.
        max_bytes: limit for the size of all pictures in the page.
    """
    entries = [
        (rank, index, kind, candidate.content)
        for index, finding in enumerate(selected)
        for kind, several in finding.kinds.items()
        for rank, candidate in enumerate(several)
    ]
    embedded: dict[tuple[int, str, int], tuple[Picture, ...]] = {}
    used_bytes = 0
    for rank, index, kind, image in sorted(entries, key=lambda entry: entry[:2]):
        finding = selected[index]
        one = (
            f"{(RANKED_ONE if finding.threshold is None else ONE)[kind]} for {plain(finding.content.finding)}"
        )
        names = [name for name in (image.image, image.map) if name]
        size = sum(4 * len(pictures[name]) // 3 + 4 for name in names)
        if used_bytes + size > max_bytes:
            break
        used_bytes += size
        embedded[index, kind, rank] = tuple(
            Picture(_uri(pictures[name]), _alt(title, one, image, phantom), _boxes(image))
            for name, title in ((image.image, "Image"), (image.map, HEAT_MAP))
            if name
        )
    counts = {row.finding: row for row in operating}
    parts = [
        Part(
            finding.content.finding,
            _counts(counts.get(finding.content.finding)),
            _note(finding),
            _kinds(finding, {key[1:]: shown for key, shown in embedded.items() if key[0] == index}),
        )
        for index, finding in enumerate(selected)
    ]
    return ShownGallery(parts, _maps(content), len(entries) - len(embedded))


HEAT_MAP = "Heat map on the image"


def listed(selected: list[Selected]) -> Table:
    """The images of the gallery as a table."""
    return Table(
        "Images of the gallery",
        ("Finding", "Kind", "Image", "Rank", "Raw score", "Calibrated score", "Threshold"),
        "lllrrrr",
        [
            [
                finding.content.finding,
                (RANKED if finding.threshold is None else KINDS)[kind],
                candidate.content.image_id,
                _rank(candidate.content, finding.content),
                f"{candidate.content.logit:.3f}",
                "none" if candidate.score is None else _score(candidate.score),
                "none" if finding.threshold is None else _score(finding.threshold),
            ]
            for finding in selected
            for kind, several in finding.kinds.items()
            for candidate in several
        ],
    )


REASONS = {"predicted otherwise": "predicted otherwise", "outlier": "unlike other images with the finding"}


def review(labels: Sequence[SuspiciousLabel]) -> Table:
    """The training labels that look wrong."""
    return Table(
        "Training labels to review; label_review.csv has the same rows",
        ("Finding", "Image", "Label", "Probability of the finding", "Outlier factor", "Reasons"),
        "lllrrl",
        [
            [
                label.finding,
                label.image_id,
                "positive" if label.label else "negative",
                number(label.probability),
                "" if label.outlier_factor is None else number(label.outlier_factor),
                ", ".join(REASONS[reason] for reason in label.reasons),
            ]
            for label in labels
        ],
    )


def _counts(row: OperatingRow | None) -> str:
    if row is None:
        return ""
    return (
        f"{pluralize(row.tp, 'hit', 'hits')}, {pluralize(row.fp, 'false alarm', 'false alarms')}, "
        f"{pluralize(row.fn, 'miss', 'misses')}"
    )


def _note(finding: Selected) -> str:
    if finding.content.note:
        return finding.content.note
    return (
        ""
        if finding.threshold is not None
        else "No threshold was chosen: the images are ordered by score alone."
    )


def _kinds(finding: Selected, pictures: Mapping[tuple[str, int], tuple[Picture, ...]]) -> list[ShownKind]:
    titles = RANKED if finding.threshold is None else KINDS
    return [
        ShownKind(
            titles[kind],
            [
                _image(candidate, finding, pictures.get((kind, rank), ()))
                for rank, candidate in enumerate(several)
            ],
            NONE[kind] if finding.threshold is not None and finding.content.positives else "",
        )
        for kind, several in finding.kinds.items()
    ]


def _image(candidate: Candidate, finding: Selected, pictures: tuple[Picture, ...]) -> ShownImage:
    image = candidate.content
    labels = ", ".join(image.labels) or "none of the findings"
    if image.unknown:
        labels += f"; unknown: {', '.join(image.unknown)}"
    score = f"raw score {image.logit:.3f}"
    if candidate.score is not None and finding.threshold is not None:
        score = f"calibrated score {_score(candidate.score)}, threshold {_score(finding.threshold)}"
    return ShownImage(image.image_id, score, _rank(image, finding.content), labels, pictures)


def _score(value: float) -> str:
    """A calibrated score, which is never shown as 0 or 1; a threshold of 1 calls no image positive."""
    return (
        f"{value:.4f}" if value >= 1 or 0.0001 <= value <= 0.9999 else "<0.0001" if value < 0.5 else ">0.9999"
    )


def _rank(image: GalleryImage, finding: GalleryFinding) -> str:
    return f"{image.rank:,} of {finding.positives + finding.negatives:,}"


def _alt(title: str, one: str, image: GalleryImage, phantom: bool) -> str:
    empty = "; no region raises the score" if title == HEAT_MAP and image.empty_map else ""
    boxes = f"; {pluralize(len(image.boxes), 'box', 'boxes')} of the finding" if image.boxes else ""
    return marked(f"{title} {plain(image.image_id)}, {one}{empty}{boxes}", phantom, ". ")


def _boxes(image: GalleryImage) -> tuple[tuple[float, float, float, float], ...]:
    return tuple(
        (
            round(100 * left, 2),
            round(100 * top, 2),
            round(100 * (right - left), 2),
            round(100 * (bottom - top), 2),
        )
        for left, top, right, bottom in image.boxes
    )


def _uri(picture: bytes) -> Markup:
    """A picture as a data URI, which needs no escaping."""
    return Markup("data:image/jpeg;base64," + base64.b64encode(picture).decode("ascii"))


def _maps(content: Gallery) -> str:
    """What the heat maps show."""
    if content.method is None:
        return f"There are no heat maps: {content.reason or 'none were made'}"
    meaning = {
        "grad_cam": "Heat maps (Grad-CAM) show which regions raise the score of the finding",
        "rollout": (
            "Heat maps (attention rollout) show which regions contribute to the output; they are "
            "the same for every finding"
        ),
        "csra": "Heat maps (CSRA) show what each position adds to the score of the finding",
        "ml_decoder": "Heat maps (ML-Decoder) show which positions the query of the finding attends to",
    }
    rows, columns = content.positions or (0, 0)
    layer = f" of {plain(content.layer)}, an earlier layer ({content.reason})" if content.layer else ""
    boxes = any(
        image.boxes for finding in content.findings for kind in KINDS for image in finding.images(kind)
    )
    drawn = ". Frames: the boxes of the finding, where there are any" if boxes else ""
    caution = "They suggest, but do not prove, what the prediction is based on"
    return f"{meaning[content.method]}, on a grid of {rows} × {columns}{layer}. {caution}{drawn}"
