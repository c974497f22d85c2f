"""Who has what: the patients of the phantom data set, their images, and the findings on each image.

All statistics were measured on the table of NIH ChestX-ray14 (112,120 images of 30,805 patients; Wang et al.,
"ChestX-ray8", CVPR 2017), so that the phantoms have its long tail and its co-occurrences.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ral.config.data import PhantomConfig
from ral.labels import PHANTOM_PREFIX
from ral.phantom.portable import Random

# The columns of the copula, alphabetical as NIH joins its labels; the last, the AP view, is no finding.
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

# Share of NIH's images with each of COLUMNS.
PREVALENCES = np.array(
    [
        *(0.10309, 0.02476, 0.04163, 0.02054, 0.11877, 0.02244, 0.01504, 0.00202),
        *(0.17743, 0.05157, 0.05647, 0.03019, 0.01276, 0.04729, 0.39966),
    ]
)

# Tetrachoric correlations of COLUMNS over NIH's images: row i holds those with rows 0 to i - 1.
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

# Thousandths of NIH's patients with 1, 2, ... 12 images; whoever has more counts as 12.
_IMAGES_PER_PATIENT = np.array([568, 134, 68, 43, 30, 26, 20, 16, 13, 10, 9, 63])
_MALE = 0.565
_AGE_MEAN, _AGE_SD = 46.6, 16.6
_YOUNGEST, _OLDEST = 1, 95

# Chance that a patient is a year older on the next image.
_BIRTHDAY = 0.15

# Share of NIH's images on its test list.
TEST_SHARE = 0.228

# However small the data set, a finding is on at least so many images of at least so many patients.
_MIN_IMAGES, _MIN_PATIENTS = 6, 5

# Shuffles of the patients tried for the test list.
_SHUFFLES = 2000


@dataclass(frozen=True)
class PhantomImage:
    """One row of the table."""

    patient: int
    """Counted from 1."""
    follow_up: int
    """Number of this image among its patient's, from 0."""
    age: int
    sex: Literal["M", "F"]
    view: Literal["PA", "AP"]
    findings: tuple[str, ...]
    """In alphabetical order; empty where there is none."""
    test: bool
    """On the test list; all images of a patient are on the same list."""

    @property
    def image_id(self) -> str:
        return f"{PHANTOM_PREFIX}{self.patient:08d}_{self.follow_up:03d}.png"


def draw_population(config: PhantomConfig) -> list[PhantomImage]:
    """Draw the table of `config.images` images, in the order of patient and follow-up."""
    # Numbers of their own for each part, so that a change of one leaves the others as they are. Patient 0 is nobody.
    counts, latent, shuffles, ages = (Random(config.seed, 0, part) for part in range(1, 5))
    owner = _draw_owners(config.images, counts)
    prevalences = np.append(np.maximum(PREVALENCES[:-1], config.floor), PREVALENCES[-1])
    labels = _draw_labels(owner, prevalences, latent)
    test = _draw_test_patients(owner, labels, shuffles)
    people = _draw_people(np.bincount(owner), ages)
    images = []
    for row, patient, (sex, age, follow_up) in zip(labels, owner, people, strict=True):
        findings = tuple(name for name, there in zip(FINDINGS, row[:-1], strict=True) if there)
        view: Literal["PA", "AP"] = "AP" if row[-1] else "PA"
        images.append(
            PhantomImage(int(patient) + 1, follow_up, age, sex, view, findings, bool(test[patient]))
        )
    return images


def correlations() -> NDArray[np.float64]:
    """The symmetric matrix of the tetrachoric correlations of COLUMNS."""
    matrix = np.eye(len(COLUMNS))
    for i, row in enumerate(_LOWER):
        matrix[i, :i] = matrix[:i, i] = row
    return matrix


def correlation_root() -> NDArray[np.float64]:
    """The lower triangle whose product with its own transpose is `correlations` (Cholesky, without a matrix library)."""
    rest, root = correlations(), np.zeros((len(COLUMNS), len(COLUMNS)))
    for i in range(len(COLUMNS)):
        root[i:, i] = rest[i:, i] / np.sqrt(rest[i, i])
        rest -= root[:, i : i + 1] * root[:, i]
    return root


def _draw_latent(rows: int, rng: Random) -> NDArray[np.float64]:
    """Normal numbers [rows, COLUMNS] with those correlations; added up one by one, for the order matters."""
    root, drawn = correlation_root(), rng.normals(len(COLUMNS), rows).astype(np.float64)
    latent = np.zeros((rows, len(COLUMNS)))
    for i in range(len(COLUMNS)):
        for j in range(i + 1):
            latent[:, i] += root[i, j] * drawn[j]
    return latent


def _draw_owners(images: int, rng: Random) -> NDArray[np.int64]:
    """Patient (from 0, ascending) of each image; the last patient may be cut short."""
    ends = np.cumsum(_IMAGES_PER_PATIENT)
    counts = 1 + np.searchsorted(ends, rng.many_below(int(ends[-1]), images), side="right")
    return np.repeat(np.arange(images), counts)[:images]


def _draw_labels(
    owner: NDArray[np.int64], prevalences: NDArray[np.float64], rng: Random
) -> NDArray[np.bool_]:
    """Which image (row) has which of COLUMNS, from a Gaussian copula over patients and images.

    A column is thresholded at its own empirical quantile, so that its prevalence is met exactly: with a fixed
    threshold a tail finding would vanish from a small data set by bad luck.

    A patient's images have half of the variance in common. So a finding is on its patient's next image too in 15 to 45 %
    of cases; NIH has 13 % (Pneumonia) to 56 % (Pneumothorax). More would leave the tail findings of a small data set to
    very few patients.
    """
    latent = _draw_latent(int(owner[-1]) + 1, rng)[owner] + _draw_latent(len(owner), rng)
    labels = np.zeros(latent.shape, dtype=bool)
    for column, prevalence in enumerate(prevalences):
        ranked = np.argsort(-latent[:, column], kind="stable")
        # The first image of each of the highest patients comes first, so that one patient alone never
        # has all images of a finding.
        _, firsts = np.unique(owner[ranked], return_index=True)
        spread = ranked[np.sort(firsts)[:_MIN_PATIENTS]]
        order = np.concatenate([spread, ranked[~np.isin(ranked, spread)]])
        labels[order[: max(_MIN_IMAGES, round(prevalence * len(owner)))], column] = True
    return labels


def _draw_test_patients(
    owner: NDArray[np.int64], labels: NDArray[np.bool_], rng: Random
) -> NDArray[np.bool_]:
    """Which patients are on the test list.

    Of many shuffles of the patients, the first TEST_SHARE of images of each, the one is kept whose worst
    column comes nearest to having TEST_SHARE of its positive images there.
    """
    images = np.bincount(owner)
    positives = np.zeros((len(images), labels.shape[1]), np.int64)
    np.add.at(positives, owner, labels)
    totals = positives.sum(axis=0)
    best, least = np.zeros(len(images), dtype=bool), np.inf
    for _ in range(_SHUFFLES):
        order = rng.permutation(len(images))
        chosen = order[np.cumsum(images[order]) <= round(TEST_SHARE * len(owner))]
        shares = positives[chosen].sum(axis=0) / totals
        worst = np.abs(shares - TEST_SHARE).max()
        if worst < least:
            best, least = np.isin(np.arange(len(images)), chosen), worst
    return best


def _draw_people(images: NDArray[np.int64], rng: Random) -> Iterator[tuple[Literal["M", "F"], int, int]]:
    """Sex, age and follow-up number of each image of patients with so many images; ages never fall."""
    for count in images:
        sex: Literal["M", "F"] = "M" if rng.uniform() < _MALE else "F"
        age = rng.normal(_AGE_MEAN, _AGE_SD)
        for follow_up in range(count):
            age += rng.uniform() < _BIRTHDAY
            yield sex, min(max(round(age), _YOUNGEST), _OLDEST), follow_up
