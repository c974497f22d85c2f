"""Histogram of pixel values in bounded memory."""

import numpy as np

# Pixels counted at a time: numpy widens each to eight bytes.
CHUNK_PIXELS = 1 << 18


def histogram(values: np.ndarray) -> np.ndarray:
    """Count each value in an array of uint8 or uint16; int64 [256 or 65536]."""
    flat, counts = values.reshape(-1), np.zeros(np.iinfo(values.dtype).max + 1, np.int64)
    for start in range(0, len(flat), CHUNK_PIXELS):
        counts += np.bincount(flat[start : start + CHUNK_PIXELS], minlength=len(counts))
    return counts
