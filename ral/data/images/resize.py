"""Exact area averaging: what an image's pixels become when it is resized, in whole numbers from end to end.

A pixel of the result is the mean of the area of the source that it covers; a source pixel that is covered in part counts in
part. (Pillow's box filter takes such a pixel whole or leaves it out, which at 1024 to 224 is up to 27 gray levels off.)
Whole numbers make the same bytes on every processor.
"""

from functools import lru_cache
from typing import Literal

import numpy as np
from scipy.sparse import csr_array

Fit = Literal["stretch", "pad", "crop"]

# Source pixels that are widened at a time: what a large image takes beside itself.
BAND = 1 << 23


def to_square(
    values: np.ndarray, black: int, white: int, size: int, fit: Fit = "stretch", invert: bool = False
) -> np.ndarray:
    """Resize to uint8 [size, size] by area averaging, [black, white] becoming [0, 255]; rounded once, at the end.

    Args:
        values: uint8 or uint16 [height, width], none outside [black, white].
        black: value that becomes 0.
        white: value that becomes 255; above `black`.
        size: height and width wanted.
        fit: stretch to the square, pad the shorter side with black, or crop the longer one, both evenly.
        invert: swap black and white, but for what is padded.
    """
    height, width = values.shape
    if fit == "crop":
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        values = values[top : top + side, left : left + side]
    inner = size, size
    if fit == "pad":
        longer = max(height, width)
        inner = max(1, round(height * size / longer)), max(1, round(width * size / longer))
    shown = _scaled(values, black, white, *inner)
    if invert:
        shown = 255 - shown
    if inner == (size, size):
        return shown
    square = np.zeros((size, size), np.uint8)
    top, left = (size - inner[0]) // 2, (size - inner[1]) // 2
    square[top : top + inner[0], left : left + inner[1]] = shown
    return square


def _scaled(values: np.ndarray, black: int, white: int, height: int, width: int) -> np.ndarray:
    if values.shape == (height, width):
        if (black, white, values.dtype) == (0, 255, np.uint8):
            return values
        sums, area = values.astype(np.int64), 1
    else:
        sums, area = area_sums(values, height, width), values.size
    steps = (white - black) * area
    return ((510 * (sums - black * area) + steps) // (2 * steps)).astype(np.uint8)


def area_sums(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """The sum of the source under each pixel of a resized image, int64 [height, width].

    A source pixel that is covered whole counts height * width, so that dividing by the source's pixels gives the mean.

    Args:
        values: uint8 or uint16 [rows, columns].
        height: of the result.
        width: of the result.
    """
    rows, columns = values.shape
    most = np.iinfo(values.dtype).max * rows  # of a sum down a column
    wide = np.int32 if most <= np.iinfo(np.int32).max else np.int64
    down, across = _cover(rows, height, wide), _cover(columns, width, np.int64)
    sums = np.empty((height, width), np.int64)
    step = max(1, BAND * height // values.size)
    for first in range(0, height, step):
        last = min(first + step, height)
        top, bottom = first * rows // height, -(-last * rows // height)
        part = down if step >= height else down[first:last, top:bottom]
        # Rows a power of two apart share few places in the processor's cache: turning them would take five times as long.
        widened = np.zeros((bottom - top, columns + 16), wide)
        widened[:, :columns] = values[top:bottom]
        columnwise = (part @ widened)[:, :columns]
        sums[first:last] = (across @ columnwise.T.astype(np.int64, order="C")).T
    return sums


@lru_cache(maxsize=16)
def _cover(source: int, target: int, dtype: type) -> csr_array:
    """How much of each source pixel each target pixel covers along one axis, in parts of 1/`target`; [target, source]."""
    edges = np.union1d(np.arange(source + 1) * target, np.arange(target + 1) * source)
    starts = edges[:-1]
    rows = np.searchsorted(starts // source, np.arange(target + 1))
    return csr_array((np.diff(edges).astype(dtype), starts // target, rows), shape=(target, source))
