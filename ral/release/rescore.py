"""Raw logits of a released model on the current images, with the scoring code of the training; CPU, float32."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from ral.data.baseline import SPLIT, read_split
from ral.data.dataset import Dataset
from ral.errors import UserError
from ral.inference.bundle import Bundle, verify
from ral.inference.score import score_images
from ral.models.load import load_network
from ral.preparation import Preparation
from ral.release.paired import ReferenceModel
from ral.release.registry import Release


def score(release: Release, bundle: Bundle, dataset: Dataset, rows: np.ndarray) -> pd.DataFrame:
    """Logits of a release.

    The number of threads is that of its training, because rounding depends on it.

    Args:
        release: the release to score.
        bundle: its bundle, verified.
        dataset: prepared images.
        rows: row numbers of the dataset to score.

    Returns:
        image_id and a float32 column per finding of the release.

    Raises:
        UserError: the images were prepared differently from those of the training.
    """
    theirs = bundle.preparation
    # An earlier version wrote nothing but the size to dataset.json.
    ours = dataset.info.preparation or theirs.model_copy(update={"size": dataset.info.size})
    if ours != theirs:
        raise UserError(
            f"{release.version} was trained on images prepared with {_text(theirs)}; those in {dataset.folder} were "
            f"prepared with {_text(ours)}. Prepare the images as for {release.version} (dvc repro preprocess)."
        )
    network, info = load_network(release.bundle / "model")
    threads_before = torch.get_num_threads()
    torch.set_num_threads(bundle.params["train"].get("threads", 1))
    try:
        logits = score_images(network, dataset, info, rows, torch.device("cpu"))
    finally:
        torch.set_num_threads(threads_before)
    table = pd.DataFrame(logits, columns=list(info.findings))
    table.insert(0, "image_id", dataset.image_ids(rows))
    return table


def _text(preparation: Preparation) -> str:
    return ", ".join(f"preprocess.{name}={value}" for name, value in preparation.model_dump().items())


def seen(folder: Path) -> frozenset[str]:
    """Patients in the training or validation split of the release in the folder of a verified bundle.

    Raises:
        UserError: the bundle has no split.
    """
    split = read_split(folder)
    if split is None:
        raise UserError(f"{folder} has no {SPLIT}. Use another release (python -m ral.release list).")
    return frozenset(split.index[split != "test"])


def reference_model(
    release: Release, dataset: Dataset, rows: np.ndarray, preparation: Preparation
) -> ReferenceModel:
    """A release as the gate compares against it, with its logits of the images whose patients it has not seen.

    Args:
        release: a release with a bundle.
        dataset: the prepared images of this run.
        rows: row numbers of the test images that may be used.
        preparation: preprocessing parameters of this run; if they differ from the release's, no image is scored.

    Raises:
        UserError: the bundle is missing or damaged.
    """
    bundle = verify(release.bundle)
    seen_patients = seen(release.bundle)
    if bundle.preparation == preparation:
        unseen = rows[~dataset.studies["patient_id"].isin(seen_patients).to_numpy()[rows]]
        logits = score(release, bundle, dataset, unseen)
    else:
        logits = pd.DataFrame(columns=["image_id", *bundle.findings])
    return ReferenceModel(release.version, logits, seen_patients, bundle.preparation)
