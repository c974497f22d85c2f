"""The report's gallery: pictures of the most confident hits, false alarms and misses, within the page."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from ral.reporting.plots import plain
from ral.reporting.tables import Table

# As gallery.json names the kinds, and as the report does.
KINDS = {"hits": "Hits", "false_positives": "False alarms", "misses": "Misses"}
ONE = {"hits": "a hit", "false_positives": "a false alarm", "misses": "a miss"}
# Bytes of all pictures as text; the rest of the page needs far less than what is left of 15 MB.
MOST = 11_000_000


@dataclass(frozen=True)
class Picture:
    """A picture within the page."""

    uri: Markup
    alt: str


@dataclass(frozen=True)
class GalleryImage:
    """An image of the gallery, as text and pictures."""

    image_id: str
    place: str
    labels: str
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Part:
    """A finding of the gallery."""

    finding: str
    note: str
    kinds: dict[str, list[GalleryImage]]


@dataclass(frozen=True)
class Gallery:
    """What the report shows of gallery.json."""

    parts: list[Part]
    maps: str
    """What the heat maps show, or why there are none."""
    beyond: int
    """Images without pictures, since the page would become too large."""


def gallery(
    content: dict[str, Any], pictures: Mapping[str, bytes], phantom: bool, most: int = MOST
) -> Gallery:
    """Lay out gallery.json; of every list the first images get their pictures first, until `most` bytes are used.

    Args:
        content: gallery.json of a run that may show images.
        pictures: JPEG files by the names that gallery.json has.
        phantom: whether every picture is marked.
        most: bytes of all pictures in the page.
    """
    entries = [
        (rank, place, kind, image)
        for place, finding in enumerate(content["findings"])
        for kind in KINDS
        for rank, image in enumerate(finding[kind])
    ]
    shown: dict[tuple[int, str, int], tuple[Picture, ...]] = {}
    used = 0
    for rank, place, kind, image in sorted(entries, key=lambda entry: entry[:2]):
        finding = content["findings"][place]["finding"]
        size = sum(4 * len(pictures[image[name]]) // 3 + 4 for name in ("image", "map") if name in image)
        if used + size > most:
            break
        used += size
        shown[place, kind, rank] = tuple(
            Picture(_uri(pictures[image[name]]), _alt(what, finding, kind, image, phantom))
            for name, what in (("image", "GalleryImage"), ("map", "Heat map on the image"))
            if name in image
        )
    parts = [
        Part(
            finding["finding"],
            finding["note"] or "",
            {
                title: [
                    _image(image, finding, shown.get((place, kind, rank), ()))
                    for rank, image in enumerate(finding[kind])
                ]
                for kind, title in KINDS.items()
                if finding[kind]
            },
        )
        for place, finding in enumerate(content["findings"])
    ]
    return Gallery(parts, _maps(content), len(entries) - len(shown))


def listed(content: dict[str, Any]) -> Table:
    """The images of the gallery as text."""
    return Table(
        "Images of the gallery",
        ("Finding", "Kind", "GalleryImage", "Rank", "Raw score"),
        "lllrr",
        [
            [
                finding["finding"],
                title,
                image["image_id"],
                _place(image, finding),
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
    return GalleryImage(image["image_id"], _place(image, finding), labels, pictures)


def _place(image: dict[str, Any], finding: dict[str, Any]) -> str:
    return f"{image['rank']:,} of {finding['positives'] + finding['negatives']:,}"


def _alt(what: str, finding: str, kind: str, image: dict[str, Any], phantom: bool) -> str:
    empty = "; nothing raises the score" if what != "GalleryImage" and image.get("empty_map") else ""
    mark = "PHANTOM IMAGES. " if phantom else ""
    return f"{mark}{what} {plain(image['image_id'])}, {ONE[kind]} for {plain(finding)}{empty}"


def _uri(picture: bytes) -> Markup:
    """A picture as an address of its own; of letters that need no escape."""
    return Markup("data:image/jpeg;base64," + base64.b64encode(picture).decode("ascii"))


def _maps(content: dict[str, Any]) -> str:
    """What the coloured pictures show."""
    method = content.get("method")
    if method is None:
        return f"There are no heat maps: {content.get('no_maps') or 'none were made'}"
    means = {
        "grad_cam": "Heat maps (Grad-CAM) show which places raise the score of the finding",
        "rollout": "Heat maps (attention rollout) show which places reach the output; they are the same for every finding",
    }
    rows, columns = content.get("positions") or (0, 0)
    return f"{means[method]}, on a grid of {rows} × {columns}. They are a hint and no proof of what decided"
