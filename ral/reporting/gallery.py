"""The report's gallery: embedded pictures of the most confident hits, false alarms and misses."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from ral.reporting.plots import plain
from ral.reporting.tables import Table

# Kind in gallery.json -> name in the report.
KINDS = {"hits": "Hits", "false_positives": "False alarms", "misses": "Misses"}
ONE = {"hits": "a hit", "false_positives": "a false alarm", "misses": "a miss"}
# Limit for the base64 size of all pictures; leaves enough of the page's 15 MB for the rest.
MAX_BYTES = 11_000_000


@dataclass(frozen=True)
class Picture:
    """A picture embedded in the page."""

    uri: Markup
    alt: str


@dataclass(frozen=True)
class GalleryImage:
    """An image of the gallery, with its captions and pictures."""

    image_id: str
    rank: str
    labels: str
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Part:
    """The gallery of one finding."""

    finding: str
    note: str
    kinds: dict[str, list[GalleryImage]]


@dataclass(frozen=True)
class Gallery:
    """The content of gallery.json that the report shows."""

    parts: list[Part]
    maps: str
    """What the heat maps show, or why there are none."""
    omitted: int
    """Number of images without pictures, to limit the size of the page."""


def gallery(
    content: dict[str, Any], pictures: Mapping[str, bytes], phantom: bool, max_bytes: int = MAX_BYTES
) -> Gallery:
    """Convert gallery.json. Pictures are embedded in the order of their rank until `max_bytes` are used.

    Args:
        content: gallery.json of a run that may show images.
        pictures: JPEG files by their names in gallery.json.
        phantom: whether every picture is marked.
        max_bytes: limit for the size of all pictures in the page.
    """
    entries = [
        (rank, index, kind, image)
        for index, finding in enumerate(content["findings"])
        for kind in KINDS
        for rank, image in enumerate(finding[kind])
    ]
    embedded: dict[tuple[int, str, int], tuple[Picture, ...]] = {}
    used_bytes = 0
    for rank, index, kind, image in sorted(entries, key=lambda entry: entry[:2]):
        finding = content["findings"][index]["finding"]
        size = sum(4 * len(pictures[image[name]]) // 3 + 4 for name in ("image", "map") if name in image)
        if used_bytes + size > max_bytes:
            break
        used_bytes += size
        embedded[index, kind, rank] = tuple(
            Picture(_uri(pictures[image[name]]), _alt(title, finding, kind, image, phantom))
            for name, title in (("image", "Image"), ("map", "Heat map on the image"))
            if name in image
        )
    parts = [
        Part(
            finding["finding"],
            finding["note"] or "",
            {
                title: [
                    _image(image, finding, embedded.get((index, kind, rank), ()))
                    for rank, image in enumerate(finding[kind])
                ]
                for kind, title in KINDS.items()
                if finding[kind]
            },
        )
        for index, finding in enumerate(content["findings"])
    ]
    return Gallery(parts, _maps(content), len(entries) - len(embedded))


def listed(content: dict[str, Any]) -> Table:
    """The images of the gallery as a table."""
    return Table(
        "Images of the gallery",
        ("Finding", "Kind", "Image", "Rank", "Raw score"),
        "lllrr",
        [
            [
                finding["finding"],
                title,
                image["image_id"],
                _rank(image, finding),
                f"{image['logit']:.3f}",
            ]
            for finding in content["findings"]
            for kind, title in KINDS.items()
            for image in finding[kind]
        ],
    )


def _image(image: dict[str, Any], finding: dict[str, Any], pictures: tuple[Picture, ...]) -> GalleryImage:
    labels = ", ".join(image.get("labels", [])) or "none of the findings"
    if image.get("unknown"):
        labels += f"; unknown: {', '.join(image['unknown'])}"
    return GalleryImage(image["image_id"], _rank(image, finding), labels, pictures)


def _rank(image: dict[str, Any], finding: dict[str, Any]) -> str:
    return f"{image['rank']:,} of {finding['positives'] + finding['negatives']:,}"


def _alt(title: str, finding: str, kind: str, image: dict[str, Any], phantom: bool) -> str:
    empty = "; no region raises the score" if title != "Image" and image.get("empty_map") else ""
    mark = "PHANTOM DATA. " if phantom else ""
    return f"{mark}{title} {plain(image['image_id'])}, {ONE[kind]} for {plain(finding)}{empty}"


def _uri(picture: bytes) -> Markup:
    """A picture as a data URI, which needs no escaping."""
    return Markup("data:image/jpeg;base64," + base64.b64encode(picture).decode("ascii"))


def _maps(content: dict[str, Any]) -> str:
    """What the heat maps show."""
    method = content.get("method")
    if method is None:
        return f"There are no heat maps: {content.get('no_maps') or 'none were made'}"
    meaning = {
        "grad_cam": "Heat maps (Grad-CAM) show which regions raise the score of the finding",
        "rollout": (
            "Heat maps (attention rollout) show which regions contribute to the output; they are "
            "the same for every finding"
        ),
    }
    rows, columns = content.get("positions") or (0, 0)
    caution = "They suggest, but do not prove, what the prediction is based on"
    return f"{meaning[method]}, on a grid of {rows} × {columns}. {caution}"
