"""How often each value of the pixels occurs, in little memory."""

import numpy as np

# Pixels that a histogram counts at a time: numpy widens them to eight bytes.
COUNTED = 1 << 18


def histogram(values: np.ndarray) -> np.ndarray:
    """How often each value occurs in an array of uint8 or uint16, int64 [256 or 65536]."""
    flat, counts = values.reshape(-1), np.zeros(np.iinfo(values.dtype).max + 1, np.int64)
    for start in range(0, len(flat), COUNTED):
        counts += np.bincount(flat[start : start + COUNTED], minlength=len(counts))
    return counts
