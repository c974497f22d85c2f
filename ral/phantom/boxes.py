"""Bounding boxes of the signs on a phantom image, and their table in the layout of NIH's BBox_List_2017.csv."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from ral.phantom.portable import Plane

# NIH's name of the file, its header (the commas in the brackets and at the end make nine fields), and its name of a
# finding that the label table calls Infiltration.
TABLE = "BBox_List_2017.csv"
HEADER = "Image Index,Finding Label,Bbox [x,y,w,h],,,"
NAMES = {"Infiltration": "Infiltrate"}

# Share of its greatest strength from which a sign counts.
LEVEL = 0.4
# Parts of a sign that are at most this share of the image apart are in one box.
GAP = 0.08
# Parts that are smaller than this share of the largest one have no box.
SMALLEST = 0.1


class Box(NamedTuple):
    """A box in pixels of the image: left, top, width, height."""

    x: int
    y: int
    w: int
    h: int


def boxes_of(strength: Plane) -> list[Box]:
    """The boxes of a sign, from the top of the image: one around each part that is strong enough.

    Args:
        strength: how strongly the sign is drawn at each pixel, at least 0.
    """
    peak = float(strength.max())
    if peak <= 0:
        return []
    strong = strength >= np.float32(LEVEL * peak)
    reach = round(GAP * len(strength) / 2)
    joined = ndimage.maximum_filter(strong, size=2 * reach + 1, mode="constant")
    parts, _ = ndimage.label(joined, structure=np.full((3, 3), 1))
    parts = np.where(strong, parts, 0)
    sizes = np.bincount(parts.ravel())[1:]
    slices = ndimage.find_objects(parts)
    return [
        Box(across.start, down.start, across.stop - across.start, down.stop - down.start)
        for (down, across), size in zip(slices, sizes, strict=True)
        if size >= SMALLEST * sizes.max()
    ]


def rows(image_id: str, finding: str, boxes: Iterable[Box]) -> list[str]:
    """The rows of the table for one finding of an image."""
    name = NAMES.get(finding, finding)
    return [f"{image_id},{name},{box.x},{box.y},{box.w},{box.h},,," for box in boxes]
