"""The images of the study: selection set and folds by patient, permuted labels.

15 % of the patients are the selection set, on which every choice is made; it is the validation set of every fold and
is tested in none. Five folds cover the other patients, so that each of their images is tested once.
"""

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ral.data.splits.hashing import hash_to_unit_interval
from ral.data.splits.stratify import stratify
from ral.errors import UserError
from ral.files import atomic_write

Array = NDArray[Any]

FOLDS, SELECTION_SHARE = 5, 0.15
# Value of `fold` for images of the selection set.
SELECTION = -1
TABLE, PIXELS, INFO = "data.npz", "pixels.npy", "dataset.json"


@dataclass(frozen=True)
class StudyData:
    """The images of the study, in the order of image_id."""

    image_id: Array
    patient_id: Array
    targets: Array
    """1, 0, or NaN if unknown; float32 [images, findings]."""
    fold: Array
    """The fold that tests the image, or `SELECTION`; int8 [images]."""
    findings: tuple[str, ...]
    sums: Array
    """Sum and sum of squares of the pixels, int64 [images, 2]."""
    sha256: str
    """Of ids, labels and pixels: first 12 digits."""
    size: int
    """Height and width of an image."""

    def split(self, fold: int) -> Array:
        """Of a fold: train, val or test, for each image."""
        return np.where(self.fold == SELECTION, "val", np.where(self.fold == fold, "test", "train"))

    def patient_order(self, purpose: str) -> Array:
        """A number for each image's patient, from a hash of the patient's id; float64 [images]."""
        codes, ids = np.unique(self.patient_id, return_inverse=True)[::-1]
        return np.array([hash_to_unit_interval(f"{purpose}:{name}") for name in ids])[codes]


def assign_folds(patient_id: Array, targets: Array) -> Array:
    """The fold of each image, int8 [images]: stratified by finding, patients whole, independent of the rows' order."""
    ids, codes = np.unique(patient_id, return_inverse=True)
    images = np.bincount(codes)
    positives = np.stack(
        [np.bincount(codes, weights=column == 1).astype(np.int64) for column in targets.T], axis=1
    )
    order = np.argsort(np.argsort([hash_to_unit_interval(f"study:{name}") for name in ids], kind="stable"))
    shares = (SELECTION_SHARE, *[(1 - SELECTION_SHARE) / FOLDS] * FOLDS)
    assigned = stratify(positives, images, order, shares, np.full(len(ids), -1))
    return (assigned[codes] - 1).astype(np.int8)


def import_prepared(prepared: Path, state: Path) -> StudyData:
    """Copy a prepared data set to `state`, in the order of image_id and with its folds; once.

    Args:
        prepared: output of the step preprocess; its own split is not used.
        state: folder of the study.

    Raises:
        UserError: `state` has other data, or `prepared` does not exist.
    """
    from ral.data.dataset import open_dataset
    from ral.data.dataset_info import DatasetInfo

    stands = (state / TABLE).is_file()
    if stands and not (prepared / INFO).is_file():
        return read_data(state)
    if not (prepared / INFO).is_file():
        raise UserError(
            f"{prepared} has no prepared images. Run the pipeline up to preprocess: docs/study.md"
        )
    if stands and (state / INFO).read_bytes() == (prepared / INFO).read_bytes():
        return read_data(state)
    if stands:
        raise UserError(f"{state} has the images of another prepared data set: use another --state.")
    dataset = open_dataset(prepared)
    studies = dataset.studies
    rows = np.argsort(studies["image_id"].to_numpy(str), kind="stable")
    image_id, patient_id = (studies[name].to_numpy(str)[rows] for name in ("image_id", "patient_id"))
    targets = studies[list(DatasetInfo.read(prepared / INFO).findings)].to_numpy(np.float32)[rows]
    pixels = dataset.gather(rows)
    digest = hashlib.sha256()
    for text in (image_id, patient_id):
        digest.update("\n".join(text).encode())
    for array in (targets, pixels):
        digest.update(array.tobytes())
    fold = assign_folds(patient_id, targets)
    data = StudyData(
        image_id, patient_id, targets, fold, dataset.findings,
        _sums(pixels),
        digest.hexdigest()[:12], pixels.shape[1],
    )  # fmt: skip
    _write(data, pixels, prepared, state)
    return data


def _sums(pixels: Array) -> Array:
    """Sum and sum of squares of each image, int64 [images, 2]; a thousand images at a time, for the memory."""
    sums = np.empty((len(pixels), 2), np.int64)
    for start in range(0, len(pixels), 1000):
        part = pixels[start : start + 1000].reshape(-1, pixels[0].size).astype(np.int64)
        sums[start : start + 1000] = np.stack([part.sum(axis=1), (part * part).sum(axis=1)], axis=1)
    return sums


def _write(data: StudyData, pixels: Array, prepared: Path, state: Path) -> None:
    """Write the images to the folder of the study; data.npz last, as it says that all is there."""
    with atomic_write(state / PIXELS) as draft, draft.open("wb") as stream:
        np.save(stream, pixels)
    with atomic_write(state / INFO) as draft:
        shutil.copyfile(prepared / INFO, draft)
    in_training = [(data.fold != SELECTION) & (data.fold != fold) for fold in range(FOLDS)]
    positives = np.stack([(data.targets[rows] == 1).sum(axis=0) for rows in in_training])
    with atomic_write(state / TABLE) as draft, draft.open("wb") as stream:
        np.savez_compressed(
            stream, image_id=data.image_id, patient_id=data.patient_id, targets=data.targets, fold=data.fold,
            findings=np.array(data.findings), training_positives=positives, sums=data.sums,
            sha256=np.array(data.sha256), size=np.array(data.size),
        )  # fmt: skip


def read_data(state: Path) -> StudyData:
    """The images that `import_prepared` wrote, without their pixels.

    Raises:
        UserError: they are not there.
    """
    if not (state / TABLE).is_file():
        raise UserError(f"{state / TABLE} does not exist. Name the prepared images with --prepared.")
    with np.load(state / TABLE, allow_pickle=False) as arrays:
        return StudyData(
            arrays["image_id"], arrays["patient_id"], arrays["targets"], arrays["fold"],
            tuple(str(name) for name in arrays["findings"]), arrays["sums"], str(arrays["sha256"]),
            int(arrays["size"]),
        )  # fmt: skip


def open_pixels(state: Path) -> Array:
    """Pixels uint8 [images, size, size], memory-mapped."""
    pixels: Array = np.load(state / PIXELS, mmap_mode="r")
    return pixels


def permute(targets: Array, patients: Array, seed: int) -> Array:
    """Labels given to other patients' images: the labels of each patient, one patient after the other, in an order of
    patients that is drawn. Every finding keeps its number of positives.

    Args:
        targets: labels [images, findings].
        patients: patient of each image.
        seed: of the draw.
    """
    ids, codes = np.unique(patients, return_inverse=True)
    drawn = np.random.default_rng(seed).permutation(len(ids))
    permuted = np.empty_like(targets)
    permuted[np.argsort(codes, kind="stable")] = targets[np.argsort(drawn[codes], kind="stable")]
    return permuted
