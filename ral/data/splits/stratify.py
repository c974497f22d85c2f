"""Iterative stratification (Sechidis et al., ECML PKDD 2011) over patients: rare findings spread over the splits.

The paper shares out single examples; here a patient, with all images, is what is shared out, for a patient must never
be in two splits. A patient counts with the number of images of each finding.
"""

from collections.abc import Sequence

import numpy as np


def stratify(
    positives: np.ndarray, images: np.ndarray, order: np.ndarray, shares: Sequence[float], given: np.ndarray
) -> np.ndarray:
    """Share patients out so that each split gets its share of every finding's positive images.

    The finding with the fewest patients left goes first, for later there is no choice left for it. Each of its
    patients goes to the split that lacks most of that finding, then most images.

    Args:
        positives: positive images of each finding, int [patients, findings].
        images: images, int [patients].
        order: a number per patient, distinct; decides between patients of equal counts. From a hash of the id, so
            that the order of the rows does not matter.
        shares: of the splits, summing to 1.
        given: split of patients who have one already, -1 for the others; they stay, and count.

    Returns:
        Split number of each patient, int [patients].
    """
    split = given.astype(np.int64).copy()
    share = np.asarray(shares, np.float64)[:, None]
    # What each split still lacks, [splits, findings] and [splits].
    lacks = share * positives.sum(axis=0, dtype=np.int64)[None, :]
    room = share[:, 0] * images.sum(dtype=np.int64)
    for number in range(len(share)):
        lacks[number] -= positives[split == number].sum(axis=0)
        room[number] -= images[split == number].sum()
    has = positives > 0
    while True:
        free = split < 0
        left = has[free].sum(axis=0)
        if not left.any():
            break
        finding = int(np.where(left > 0, left, np.iinfo(np.int64).max).argmin())
        patients = np.flatnonzero(free & has[:, finding])
        # The largest first: small ones fill the gaps that they leave.
        for patient in patients[np.lexsort((order[patients], -positives[patients, finding]))]:
            chosen = _most(lacks[:, finding], room)
            split[patient] = chosen
            lacks[chosen] -= positives[patient]
            room[chosen] -= images[patient]
    rest = np.flatnonzero(split < 0)
    for patient in rest[np.lexsort((order[rest], -images[rest]))]:
        chosen = int(room.argmax())
        split[patient] = chosen
        room[chosen] -= images[patient]
    return split


def _most(lacks: np.ndarray, room: np.ndarray) -> int:
    """The split that lacks most; of equals the one with most room, then the first."""
    best = np.flatnonzero(lacks >= lacks.max() - 1e-9)
    return int(best[room[best].argmax()])
