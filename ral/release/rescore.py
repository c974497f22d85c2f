"""Raw logits of a released model on images of today, by the code that scores them in training; CPU, float32."""

from typing import Any

import numpy as np
import pandas as pd
import torch

from ral.data.baseline import SPLIT, read_split
from ral.data.dataset import Dataset
from ral.errors import UserError
from ral.inference.score import score_images
from ral.models.load import load_model
from ral.release.bundle import verify
from ral.release.paired import ReferenceModel
from ral.release.registry import Release


def score(release: Release, dataset: Dataset, rows: np.ndarray) -> pd.DataFrame:
    """Logits of a release.

    Its bundle is held against its hashes first. Threads are those of its training, since rounding depends on them.

    Args:
        release: with a bundle.
        dataset: prepared images.
        rows: of the dataset.

    Returns:
        image_id and a float32 column per finding of the release.

    Raises:
        UserError: the bundle is gone or damaged, or the images are of another size than the model was trained on.
    """
    content = verify(release.bundle)
    network, facts = load_model(release.bundle / "model")
    if facts["size"] != dataset.metadata["size"]:
        raise UserError(
            f"{release.version} was trained on images of {facts['size']} pixels, but {dataset.folder} has "
            f"{dataset.metadata['size']}. Prepare the images with preprocess.size={facts['size']}."
        )
    before = torch.get_num_threads()
    torch.set_num_threads(content["params"]["train"].get("threads", 1))
    try:
        logits = score_images(network, dataset, facts, rows, torch.device("cpu"))
    finally:
        torch.set_num_threads(before)
    table = pd.DataFrame(logits, columns=facts["findings"])
    table.insert(0, "image_id", dataset.studies["image_id"].to_numpy()[rows])
    return table


def seen(release: Release) -> frozenset[str]:
    """Patients that a release was trained or validated with, by its bundle's split.

    Raises:
        UserError: the bundle is gone or damaged.
    """
    verify(release.bundle)
    split = read_split(release.bundle)
    if split is None:
        raise UserError(f"{release.bundle} has no {SPLIT}. Use another release (python -m ral.release list).")
    return frozenset(split.index[split != "test"])


def rival(
    release: Release, dataset: Dataset, rows: np.ndarray, preparation: dict[str, Any]
) -> ReferenceModel:
    """A release as the gate looks at it: its logits of those of the images whose patients it has not seen.

    Args:
        release: with a bundle.
        dataset: tonight's prepared images.
        rows: test images that may be used.
        preparation: how tonight's images became pixels; images prepared otherwise are not scored.

    Raises:
        UserError: the bundle is gone or damaged.
    """
    content = verify(release.bundle)
    known = seen(release)
    if content["preparation"] == preparation:
        logits = score(release, dataset, rows[~dataset.studies["patient_id"].isin(known).to_numpy()[rows]])
    else:
        logits = pd.DataFrame(columns=["image_id", *content["findings"]])
    return ReferenceModel(release.version, logits, known, content["preparation"])
