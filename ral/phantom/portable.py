"""Arithmetic and random numbers with the same results on every processor, for the phantom images.

IEEE 754 fixes the results of + - * / and of the square root, so done element by element they are equal everywhere. Not
so cosines, exponentials and powers, whose last digits differ between libraries and processors; sums and matrix
products of floats, whose order varies; and expressions inside compiled code, where a compiler may fuse a multiplication
with an addition. So numpy's normal and uniform numbers and Pillow's resizing of floats are not used either.
"""

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

# float32 throughout: half the time of float64.
Plane = NDArray[Any]

# The sum of so many random bytes has mean 1530 and a standard deviation of 256, nearly, and is nearly normal.
_BYTES, _MEAN, _SD = 12, 1530, 256


class Random:
    """Random numbers; the same seeds give the same numbers.

    Args:
        seed: whole numbers from 0, up to four, and zeros at the end count for nothing.
    """

    def __init__(self, *seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def below(self, end: int) -> int:
        """A whole number from 0 to `end` - 1."""
        return int(self._rng.integers(end))

    def many_below(self, end: int, count: int) -> NDArray[np.int64]:
        """Whole numbers from 0 to `end` - 1."""
        return self._rng.integers(end, size=count)

    def permutation(self, count: int) -> NDArray[np.int64]:
        """The numbers from 0 to `count` - 1 in random order."""
        return self._rng.permutation(count)

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """A number from `low` up to `high`."""
        return low + (high - low) * self._rng.random()

    def normal(self, mean: float, sd: float) -> float:
        """A normal number."""
        return mean + sd * float(self.normals(1)[0])

    def normals(self, *shape: int) -> Plane:
        """Standard normal numbers, float32, in steps of 1/256 and not beyond 6."""
        size = int(np.prod(shape))
        drawn = np.frombuffer(self._rng.bytes(_BYTES * size), np.uint8).reshape(_BYTES, size)
        total = drawn.sum(axis=0, dtype=np.int16) - np.int16(_MEAN)
        return (total.astype(np.float32) / _SD).reshape(shape)


def cosine(turns: Plane) -> Plane:
    """Cosine of an angle in turns, to within 0.0011: of parabolas."""
    quarter = 0.25 - np.abs(turns - np.rint(turns))
    arch = quarter * (8 - 16 * np.abs(quarter))
    return arch * (0.775 + 0.225 * np.abs(arch))


def rotation(turns: float) -> tuple[float, float]:
    """Cosine and sine of one angle in turns."""
    cos, sin = cosine(np.array([turns, turns - 0.25])).tolist()
    return cos, sin


def direction(across: Plane, down: Plane) -> Plane:
    """Angle of a step in turns, to within 0.0023, from right to down."""
    # The part of the way along a square's side instead of a circle's, made rounder.
    part = down / (np.abs(across) + np.abs(down) + 1e-6)
    size = np.abs(part)
    quarters = part * (1 - 0.4 * (1 - size) * (1 - 2 * size))
    return 0.25 * np.where(across < 0, 2 - quarters, quarters)


def decay(values: Plane) -> Plane:
    """About exp(-values) of values that are not negative: 0.02 too little at most, and 0 from 16 on."""
    rest: Plane = np.maximum(1 - values * (1 / 16), 0)
    for _ in range(4):
        rest *= rest
    return rest


def enlarge(values: Plane, size: int) -> Plane:
    """Resize a small square to `size` x `size`, smoothly: cubic interpolation."""
    return _stretch(_stretch(values, size).T, size).T


def _stretch(values: Plane, size: int) -> Plane:
    """Interpolate the rows of `values` to `size` rows."""
    total = np.zeros((size, values.shape[1]), np.float32)
    for row, weight in _neighbors(len(values), size):
        total += weight * values[row]
    return total


@lru_cache(maxsize=16)
def _neighbors(rows: int, size: int) -> list[tuple[NDArray[np.int64], Plane]]:
    """The four rows that make each new row, each with its weight; beyond the first and last row these go on."""
    middle = (np.arange(size) + 0.5) * (rows / size) - 0.5
    before = np.floor(middle)
    f = middle - before
    weights = (
        ((1 - 0.5 * f) * f - 0.5) * f,
        (1.5 * f - 2.5) * f * f + 1,
        ((2 - 1.5 * f) * f + 0.5) * f,
        (0.5 * f - 0.5) * f * f,
    )
    return [
        (np.clip(before + step, 0, rows - 1).astype(np.int64), weight.astype(np.float32)[:, None])
        for step, weight in zip((-1, 0, 1, 2), weights, strict=True)
    ]
