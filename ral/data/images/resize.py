"""Resizes images by exact area averaging in integer arithmetic.

A pixel of the result is the mean of the source area that it covers; partly covered source pixels count in
part. (Pillow's box filter includes or excludes such pixels as a whole, which is off by up to 27 gray levels
from 1024 to 224.) Integer arithmetic gives the same bytes on every processor.
"""

from functools import lru_cache
from typing import Literal

import numpy as np
from scipy.sparse import csr_array

Fit = Literal["stretch", "pad", "crop"]

# Source pixels converted to a wider type at a time, which bounds extra memory.
BAND = 1 << 23


def to_square(
    values: np.ndarray, black: int, white: int, size: int, fit: Fit = "stretch", invert: bool = False
) -> np.ndarray:
    """Resize to uint8 [size, size] by area averaging and map [black, white] to [0, 255]; rounded once, at the end.

    Args:
        values: uint8 or uint16 [height, width], none outside [black, white].
        black: value that becomes 0.
        white: value that becomes 255; greater than `black`.
        size: height and width of the result.
        fit: stretch to the square, pad the shorter side with black, or crop the longer one, both evenly.
        invert: swap black and white, except in the padding.
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
        if (black, white) == (0, 255) and values.dtype == np.uint8:
            return values
        sums, area = values.astype(np.int64), 1
    else:
        sums, area = area_sums(values, height, width), values.size
    steps = (white - black) * area
    return ((510 * (sums - black * area) + steps) // (2 * steps)).astype(np.uint8)


def area_sums(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """Sum of the source area under each pixel of a resized image, int64 [height, width].

    A fully covered source pixel has weight height * width, so dividing by the number of source pixels gives the mean.

    Args:
        values: uint8 or uint16 [rows, columns].
        height: height of the result.
        width: width of the result.
    """
    rows, columns = values.shape
    max_sum = np.iinfo(values.dtype).max * rows  # of a column
    wide = np.int32 if max_sum <= np.iinfo(np.int32).max else np.int64
    down, across = _cover(rows, height, wide), _cover(columns, width, np.int64)
    sums = np.empty((height, width), np.int64)
    step = max(1, BAND * height // values.size)
    for first in range(0, height, step):
        last = min(first + step, height)
        top, bottom = first * rows // height, -(-last * rows // height)
        part = down if step >= height else down[first:last, top:bottom]
        # Padding avoids a power-of-two row stride, whose cache conflicts make the transpose five times slower.
        widened = np.zeros((bottom - top, columns + 16), wide)
        widened[:, :columns] = values[top:bottom]
        columnwise = (part @ widened)[:, :columns]
        sums[first:last] = (across @ columnwise.T.astype(np.int64, order="C")).T
    return sums


@lru_cache(maxsize=16)
def _cover(source: int, target: int, dtype: type) -> csr_array:
    """Overlap of each target pixel with each source pixel along one axis, in units of 1/`target`; [target, source]."""
    edges = np.union1d(np.arange(source + 1) * target, np.arange(target + 1) * source)
    starts = edges[:-1]
    rows = np.searchsorted(starts // source, np.arange(target + 1))
    return csr_array((np.diff(edges).astype(dtype), starts // target, rows), shape=(target, source))
