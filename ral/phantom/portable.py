"""Arithmetic and random numbers with the same results on every processor, for the phantom images.

IEEE 754 defines the results of + - * / and of the square root exactly, so elementwise they are the same
everywhere. Other operations are not: cosines, exponentials and powers differ in the last digits between
libraries and processors, sums and matrix products of floats vary in order, and compilers may fuse
multiplications with additions. Therefore numpy's normal and uniform numbers and Pillow's resizing of floats
are not used either.
"""

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

# float32 throughout, which takes half the time of float64.
Plane = NDArray[Any]

# The sum of 12 random bytes has mean 1530, a standard deviation close to 256, and a nearly normal distribution.
_BYTES, _MEAN, _SD = 12, 1530, 256


class Random:
    """Reproducible random numbers.

    Args:
        seed: up to four non-negative integers; trailing zeros have no effect.
    """

    def __init__(self, *seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def below(self, end: int) -> int:
        """A random integer from 0 to `end` - 1."""
        return int(self._rng.integers(end))

    def many_below(self, end: int, count: int) -> NDArray[np.int64]:
        """Random integers from 0 to `end` - 1."""
        return self._rng.integers(end, size=count)

    def permutation(self, count: int) -> NDArray[np.int64]:
        """The numbers from 0 to `count` - 1 in random order."""
        return self._rng.permutation(count)

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """A uniform random number in [`low`, `high`)."""
        return low + (high - low) * self._rng.random()

    def normal(self, mean: float, sd: float) -> float:
        """A normal random number."""
        return mean + sd * float(self.normals(1)[0])

    def normals(self, *shape: int) -> Plane:
        """Standard normal numbers, float32, in steps of 1/256, between -6 and 6."""
        size = int(np.prod(shape))
        drawn = np.frombuffer(self._rng.bytes(_BYTES * size), np.uint8).reshape(_BYTES, size)
        total = drawn.sum(axis=0, dtype=np.int16) - np.int16(_MEAN)
        normals: Plane = (total.astype(np.float32) / _SD).reshape(shape)
        return normals


def cosine(turns: Plane) -> Plane:
    """Cosine of an angle in turns, approximated by parabolas to within 0.0011."""
    quarter = 0.25 - np.abs(turns - np.rint(turns))
    arch = quarter * (8 - 16 * np.abs(quarter))
    wave: Plane = arch * (0.775 + 0.225 * np.abs(arch))
    return wave


def rotation(turns: float) -> tuple[float, float]:
    """Cosine and sine of one angle in turns."""
    cos, sin = cosine(np.array([turns, turns - 0.25])).tolist()
    return cos, sin


def direction(across: Plane, down: Plane) -> Plane:
    """Angle of a step in turns, to within 0.0023, from right to down."""
    # Position along the side of a square instead of a circle, with a correction.
    part = down / (np.abs(across) + np.abs(down) + 1e-6)
    size = np.abs(part)
    quarters = part * (1 - 0.4 * (1 - size) * (1 - 2 * size))
    angle: Plane = 0.25 * np.where(across < 0, 2 - quarters, quarters)
    return angle


def decay(values: Plane) -> Plane:
    """Approximates exp(-values) for non-negative values: at most 0.02 too small, and 0 from 16 on."""
    rest: Plane = np.maximum(1 - values * (1 / 16), 0)
    for _ in range(4):
        rest *= rest
    return rest


def enlarge(values: Plane, size: int) -> Plane:
    """Resize a small square to `size` x `size` by cubic interpolation."""
    return _stretch(_stretch(values, size).T, size).T


def _stretch(values: Plane, size: int) -> Plane:
    """Interpolate the rows of `values` to `size` rows."""
    total = np.zeros((size, values.shape[1]), np.float32)
    for row, weight in _neighbors(len(values), size):
        total += weight * values[row]
    return total


@lru_cache(maxsize=16)
def _neighbors(rows: int, size: int) -> list[tuple[NDArray[np.int64], Plane]]:
    """The four source rows and weights for each new row; the first and last row are repeated at the borders."""
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
