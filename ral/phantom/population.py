"""Draws the population of the phantom data set: patients, their images, and the findings on each image.

All statistics were measured on the table of NIH ChestX-ray14 (112,120 images of 30,805 patients; Wang et al.,
"ChestX-ray8", CVPR 2017), so that the phantoms have the same long tail and co-occurrences.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ral.config.data import PhantomConfig
from ral.labels import PHANTOM_PREFIX
from ral.phantom.portable import Random

# The columns of the copula, in NIH's alphabetical order of labels; the last one, the AP view, is not a finding.
COLUMNS = (
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Effusion",
    "Emphysema",
    "Fibrosis",
    "Hernia",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pleural_Thickening",
    "Pneumonia",
    "Pneumothorax",
    "AP",
)
FINDINGS = COLUMNS[:-1]

# Prevalence of COLUMNS among NIH's images.
PREVALENCES = np.array(
    [
        *(0.10309, 0.02476, 0.04163, 0.02054, 0.11877, 0.02244, 0.01504, 0.00202),
        *(0.17743, 0.05157, 0.05647, 0.03019, 0.01276, 0.04729, 0.39966),
    ]
)

# Tetrachoric correlations of COLUMNS over NIH's images: row i has those with columns 0 to i - 1.
_LOWER = (
    (),
    (0.07,),
    (0.31, 0.08),
    (-0.02, 0.16, 0.11),
    (0.37, 0.39, 0.28, 0.23),
    (0.13, -0.06, -0.00, -0.09, 0.05),
    (0.06, 0.04, 0.02, -0.19, -0.01, -0.01),
    (0.11, 0.03, -0.11, -0.05, -0.05, -0.03, 0.12),
    (0.21, 0.05, 0.14, 0.31, 0.25, 0.00, 0.04, -0.04),
    (0.06, -0.07, 0.25, 0.02, 0.20, 0.11, 0.06, 0.13, 0.04),
    (-0.03, -0.07, 0.12, 0.00, 0.06, -0.04, 0.12, -0.04, 0.12, 0.30),
    (0.10, 0.06, 0.13, -0.01, 0.23, 0.14, 0.26, 0.02, 0.07, 0.24, 0.19),
    (0.14, 0.02, 0.15, 0.56, 0.12, -0.05, -0.09, 0.00, 0.29, -0.01, -0.03, 0.02),
    (0.10, -0.17, 0.00, -0.20, 0.15, 0.51, 0.00, -0.03, 0.00, 0.12, 0.03, 0.14, -0.09),
    (0.15, 0.04, 0.32, 0.53, 0.16, 0.00, -0.27, -0.23, 0.22, -0.02, -0.08, -0.14, 0.16, -0.05),
)

# Share of NIH's patients with 1, 2, ... 12 or more images, in thousandths.
_IMAGES_PER_PATIENT = np.array([568, 134, 68, 43, 30, 26, 20, 16, 13, 10, 9, 63])
_MALE = 0.565
_AGE_MEAN, _AGE_SD = 46.6, 16.6
_YOUNGEST, _OLDEST = 1, 95

# Probability that a patient is a year older on the next image.
_BIRTHDAY = 0.15

# Share of NIH's images on its test list.
TEST_SHARE = 0.228

# Minimum images and patients with a finding, however small the data set.
_MIN_IMAGES, _MIN_PATIENTS = 6, 5

# Number of shuffles of the patients tried for the test list.
_SHUFFLES = 2000


@dataclass(frozen=True)
class PhantomImage:
    """One row of the table."""

    patient: int
    """Counted from 1."""
    follow_up: int
    """Number of this image among those of the patient, from 0."""
    age: int
    sex: Literal["M", "F"]
    view: Literal["PA", "AP"]
    findings: tuple[str, ...]
    """In alphabetical order; empty without findings."""
    test: bool
    """On the test list; all images of a patient are on the same list."""

    @property
    def image_id(self) -> str:
        return f"{PHANTOM_PREFIX}{self.patient:08d}_{self.follow_up:03d}.png"


def draw_population(config: PhantomConfig) -> list[PhantomImage]:
    """Draw the table of `config.images` images, in the order of patient and follow-up."""
    # Separate generators, so that a change of one part leaves the others unchanged. Patient 0 does not exist.
    counts, latent, shuffles, ages = (Random(config.seed, 0, part) for part in range(1, 5))
    patient_of_image = _draw_patients(config.images, counts)
    prevalences = np.append(np.maximum(PREVALENCES[:-1], config.floor), PREVALENCES[-1])
    labels = _draw_labels(patient_of_image, prevalences, latent)
    test = _draw_test_patients(patient_of_image, labels, shuffles)
    people = _draw_people(np.bincount(patient_of_image), ages)
    images = []
    for row, patient, (sex, age, follow_up) in zip(labels, patient_of_image, people, strict=True):
        findings = tuple(name for name, present in zip(FINDINGS, row[:-1], strict=True) if present)
        view: Literal["PA", "AP"] = "AP" if row[-1] else "PA"
        images.append(
            PhantomImage(int(patient) + 1, follow_up, age, sex, view, findings, bool(test[patient]))
        )
    return images


def correlations() -> NDArray[np.float64]:
    """The symmetric matrix of tetrachoric correlations of COLUMNS."""
    matrix = np.eye(len(COLUMNS))
    for i, row in enumerate(_LOWER):
        matrix[i, :i] = matrix[:i, i] = row
    return matrix


def correlation_root() -> NDArray[np.float64]:
    """Cholesky factor of `correlations`, computed without a matrix library for identical bytes everywhere."""
    rest, root = correlations(), np.zeros((len(COLUMNS), len(COLUMNS)))
    for i in range(len(COLUMNS)):
        root[i:, i] = rest[i:, i] / np.sqrt(rest[i, i])
        rest -= root[:, i : i + 1] * root[:, i]
    return root


def _draw_latent(rows: int, rng: Random) -> NDArray[np.float64]:
    """Normal numbers [rows, COLUMNS] with those correlations; summed in a fixed order."""
    root, drawn = correlation_root(), rng.normals(len(COLUMNS), rows).astype(np.float64)
    latent = np.zeros((rows, len(COLUMNS)))
    for i in range(len(COLUMNS)):
        for j in range(i + 1):
            latent[:, i] += root[i, j] * drawn[j]
    return latent


def _draw_patients(images: int, rng: Random) -> NDArray[np.int64]:
    """Patient (from 0, ascending) of each image; the last patient may have fewer images than drawn."""
    ends = np.cumsum(_IMAGES_PER_PATIENT)
    counts = 1 + np.searchsorted(ends, rng.many_below(int(ends[-1]), images), side="right")
    return np.repeat(np.arange(images), counts)[:images]


def _draw_labels(
    patient_of_image: NDArray[np.int64], prevalences: NDArray[np.float64], rng: Random
) -> NDArray[np.bool_]:
    """Draw which image (row) has which of COLUMNS, from a Gaussian copula over patients and images.

    Each column is thresholded at its empirical quantile, so that its prevalence is exact: with a fixed
    threshold, a tail finding could be missing from a small data set by chance.

    Images of a patient share half of the variance. A finding recurs on the patient's next image in 15 to 45 % of cases;
    NIH has 13 % (Pneumonia) to 56 % (Pneumothorax). With more, tail findings of a small data set would be
    limited to very few patients.
    """
    latent = _draw_latent(int(patient_of_image[-1]) + 1, rng)[patient_of_image] + _draw_latent(
        len(patient_of_image), rng
    )
    labels = np.zeros(latent.shape, dtype=bool)
    for column, prevalence in enumerate(prevalences):
        ranked = np.argsort(-latent[:, column], kind="stable")
        # Take one image of each of the top-ranked patients first, so that a finding is never limited to one patient.
        _, firsts = np.unique(patient_of_image[ranked], return_index=True)
        spread = ranked[np.sort(firsts)[:_MIN_PATIENTS]]
        order = np.concatenate([spread, ranked[~np.isin(ranked, spread)]])
        labels[order[: max(_MIN_IMAGES, round(prevalence * len(patient_of_image)))], column] = True
    return labels


def _draw_test_patients(
    patient_of_image: NDArray[np.int64], labels: NDArray[np.bool_], rng: Random
) -> NDArray[np.bool_]:
    """Choose the patients of the test list.

    Of many random test sets with TEST_SHARE of the images, use the one whose worst column is closest to having
    TEST_SHARE of its positive images in the test set.
    """
    images = np.bincount(patient_of_image)
    positives = np.zeros((len(images), labels.shape[1]), np.int64)
    np.add.at(positives, patient_of_image, labels)
    totals = positives.sum(axis=0)
    best, smallest_error = np.zeros(len(images), dtype=bool), np.inf
    for _ in range(_SHUFFLES):
        order = rng.permutation(len(images))
        chosen = order[np.cumsum(images[order]) <= round(TEST_SHARE * len(patient_of_image))]
        shares = positives[chosen].sum(axis=0) / totals
        error = np.abs(shares - TEST_SHARE).max()
        if error < smallest_error:
            best, smallest_error = np.isin(np.arange(len(images)), chosen), error
    return best


def _draw_people(images: NDArray[np.int64], rng: Random) -> Iterator[tuple[Literal["M", "F"], int, int]]:
    """Sex, age and follow-up number of each image, given the number of images per patient; ages never decrease."""
    for count in images:
        sex: Literal["M", "F"] = "M" if rng.uniform() < _MALE else "F"
        age = rng.normal(_AGE_MEAN, _AGE_SD)
        for follow_up in range(count):
            age += rng.uniform() < _BIRTHDAY
            yield sex, min(max(round(age), _YOUNGEST), _OLDEST), follow_up
