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

# Source pixels converted to a wider type at a time: so few stay in the processor's cache.
BAND = 1 << 18


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
    inner = _inner(height, width, size, fit)
    shown = _scaled(values, black, white, *inner)
    if invert:
        shown = 255 - shown
    if inner == (size, size):
        return shown
    square = np.zeros((size, size), np.uint8)
    top, left = (size - inner[0]) // 2, (size - inner[1]) // 2
    square[top : top + inner[0], left : left + inner[1]] = shown
    return square


def placement(height: int, width: int, size: int, fit: Fit) -> tuple[float, float, float, float]:
    """Where `to_square` puts the pixels of an image: factors of x and y, and what is then added to x and y.

    Args:
        height: of the image, in pixels.
        width: of the image, in pixels.
        size: height and width of the result.
        fit: how the image is made square.
    """
    if fit == "crop":
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        return size / side, size / side, -left * size / side, -top * size / side
    rows, columns = _inner(height, width, size, fit)
    return columns / width, rows / height, float((size - columns) // 2), float((size - rows) // 2)


def _inner(height: int, width: int, size: int, fit: Fit) -> tuple[int, int]:
    """Rows and columns of the result that an image takes."""
    if fit != "pad":
        return size, size
    longer = max(height, width)
    return max(1, round(height * size / longer)), max(1, round(width * size / longer))


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
    maximum = np.iinfo(values.dtype).max
    across = _cover(columns, width, _sum_type(maximum * values.size))
    # Padding avoids a power-of-two row stride, whose cache conflicts make the transpose five times slower.
    columnwise = np.empty((height, columns + 16), across.dtype)[:, :columns]
    for first, last, top, bottom, part in _bands(rows, columns, height, _sum_type(maximum * rows)):
        columnwise[first:last] = part @ values[top:bottom].astype(part.dtype)
    sums: np.ndarray = across @ np.ascontiguousarray(columnwise.T)
    return sums.T.astype(np.int64)


def _sum_type(maximum: int) -> type:
    """The smaller integer type that holds sums up to a maximum: it is faster."""
    return np.int32 if maximum <= np.iinfo(np.int32).max else np.int64


@lru_cache(maxsize=16)
def _bands(rows: int, columns: int, height: int, dtype: type) -> list[tuple[int, int, int, int, csr_array]]:
    """Bands of about BAND source pixels: first and last row of the result, top and bottom row of the source, and the
    overlap of the two.
    """
    cover = _cover(rows, height, dtype)
    step = max(1, BAND * height // (rows * columns))
    bands = []
    for first in range(0, height, step):
        last = min(first + step, height)
        top, bottom = first * rows // height, -(-last * rows // height)
        start, end = cover.indptr[[first, last]]
        entries = (
            cover.data[start:end],
            cover.indices[start:end] - top,
            cover.indptr[first : last + 1] - start,
        )
        bands.append((first, last, top, bottom, csr_array(entries, shape=(last - first, bottom - top))))
    return bands


@lru_cache(maxsize=16)
def _cover(source: int, target: int, dtype: type) -> csr_array:
    """Overlap of each target pixel with each source pixel along one axis, in units of 1/`target`; [target, source]."""
    edges = np.union1d(np.arange(source + 1) * target, np.arange(target + 1) * source)
    starts = edges[:-1]
    rows = np.searchsorted(starts // source, np.arange(target + 1))
    return csr_array((np.diff(edges).astype(dtype), starts // target, rows), shape=(target, source))
