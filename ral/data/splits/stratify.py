"""Iterative stratification (Sechidis et al., ECML PKDD 2011) over patients: balances rare findings across the splits.

The paper assigns single examples. Here whole patients are assigned, with all their images, because a patient must never
be in two splits. A patient is weighted by the number of images of each finding.
"""

from collections.abc import Sequence

import numpy as np


def stratify(
    positives: np.ndarray, images: np.ndarray, order: np.ndarray, shares: Sequence[float], given: np.ndarray
) -> np.ndarray:
    """Assign patients so that each split gets its share of every finding's positive images.

    The finding with the fewest unassigned patients goes first, while there is still a choice. Each of its patients
    goes to the split that needs most of that finding; ties go to the split that needs most images.

    Args:
        positives: positive images of each finding, int [patients, findings].
        images: images, int [patients].
        order: a distinct number per patient, which breaks ties between patients of equal counts. It comes from a hash
            of the id, so that the order of the rows does not matter.
        shares: of the splits, summing to 1.
        given: split of patients who already have one, -1 for the others; it is kept and counted.

    Returns:
        Split number of each patient, int [patients].
    """
    split = given.astype(np.int64).copy()
    share = np.asarray(shares, np.float64)[:, None]
    # What each split still needs, [splits, findings] and [splits].
    needed = share * positives.sum(axis=0, dtype=np.int64)[None, :]
    needed_images = share[:, 0] * images.sum(dtype=np.int64)
    for number in range(len(share)):
        needed[number] -= positives[split == number].sum(axis=0)
        needed_images[number] -= images[split == number].sum()
    has_finding = positives > 0
    while True:
        unassigned = split < 0
        remaining = has_finding[unassigned].sum(axis=0)
        if not remaining.any():
            break
        finding = int(np.where(remaining > 0, remaining, np.iinfo(np.int64).max).argmin())
        patients = np.flatnonzero(unassigned & has_finding[:, finding])
        # Largest first: small ones fill the gaps.
        for patient in patients[np.lexsort((order[patients], -positives[patients, finding]))]:
            chosen = _neediest(needed[:, finding], needed_images)
            split[patient] = chosen
            needed[chosen] -= positives[patient]
            needed_images[chosen] -= images[patient]
    rest = np.flatnonzero(split < 0)
    for patient in rest[np.lexsort((order[rest], -images[rest]))]:
        chosen = int(needed_images.argmax())
        split[patient] = chosen
        needed_images[chosen] -= images[patient]
    return split


def _neediest(needed: np.ndarray, needed_images: np.ndarray) -> int:
    """The split that needs most of a finding; ties go to the one that needs most images, then to the first."""
    candidates = np.flatnonzero(needed >= needed.max() - 1e-9)
    return int(candidates[needed_images[candidates].argmax()])
