"""Explain the trained network: heat maps of hits and errors, confused findings, geometry of the classifier.

    python -m tasks.explain

Writes gallery/ (gallery.json and thumbnails; no thumbnails if explain.show_images is false; label_review.csv if
explain.review asks for it; localisation.csv if there are boxes), confusion.csv (pairs of confused findings) and
geometry.json (directions of the classifier, class means). Uses a GPU if available.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from ral import artifacts
from ral.config.explain import ExplainParams
from tasks import step

if TYPE_CHECKING:
    import pandas as pd

    from ral.data.dataset import Dataset
    from ral.models import Network
    from ral.models.info import ModelInfo


def run(params: ExplainParams, prepared: Path, models: Path, out: Path) -> None:
    """Explain the network in `models` on the images in `prepared` and write the results to `out`.

    Raises:
        UserError: network, logits and images do not belong together, or the network does not support the
            method.
    """
    import pandas as pd
    import torch

    from ral.data.dataset import open_dataset
    from ral.data.splits.holdout import unsealed
    from ral.errors import UserError
    from ral.evaluation.confusion import confusion
    from ral.evaluation.rows import align, read_studies
    from ral.explain.gallery import write_gallery
    from ral.explain.geometry import geometry
    from ral.explain.review import review
    from ral.explain.select import select
    from ral.files import atomic_directory
    from ral.memory import keep_freed_memory
    from ral.models.load import load_network

    config = params.explain
    keep_freed_memory()
    torch.set_num_threads(config.threads)
    dataset = open_dataset(prepared)
    network, info = load_network(models)
    for name in ("findings", "size", "phantom"):
        trained, present = getattr(info, name), getattr(dataset.info, name)
        if trained != present:
            raise UserError(
                f"{models / artifacts.MODEL.name} and {prepared / artifacts.DATASET.name} differ in `{name}` "
                f"({trained} and {present}): the network was trained on other images. "
                "Train again."
            )
    network = network.to("cuda" if torch.cuda.is_available() else "cpu")
    logits = pd.read_parquet(models / artifacts.LOGITS.name / artifacts.logits("test").name)
    studies, logits = unsealed(read_studies(prepared), params.evaluate.sealed, logits)
    rows, scores = align(studies, logits, "test")
    data = "phantom" if info.phantom else "images"
    with atomic_directory(out) as draft:
        # The folder is replaced as a whole, so that no pictures of an earlier run remain.
        (draft / artifacts.GALLERY.name).mkdir()
        selections = select(rows, scores, config.per_kind)
        suspicious = None if config.review is None else review(network, info, dataset, config.review)
        write_gallery(draft / artifacts.GALLERY.name, network, info, dataset, selections, config, suspicious)
        if dataset.boxes is not None:
            located = _localisation(params, network, info, dataset, rows["image_id"]).assign(data=data)
            path = draft / artifacts.GALLERY.name / artifacts.LOCALISATION.name
            located.to_csv(path, index=False, lineterminator="\n")
        geometry(network, info, dataset, config.geometry_images).write(draft / artifacts.GEOMETRY.name)
        table = confusion(rows, scores, config.confused).assign(data=data)
        table.to_csv(draft / artifacts.CONFUSION.name, index=False, lineterminator="\n")


def _localisation(
    params: ExplainParams,
    network: "Network",
    info: "ModelInfo",
    dataset: "Dataset",
    test: "pd.Series[str]",
) -> "pd.DataFrame":
    """localisation.csv: how well each kind of heat map points at the boxes of validation and test images.

    Args:
        test: ids of the test images that are not sealed.
    """
    import numpy as np
    import torch

    from ral.evaluation.localisation import summarise, to_table
    from ral.explain.localisation import localisation
    from ral.explain.saliency import choose_method

    blank = torch.zeros(1, 1, info.size, info.size, device=next(network.parameters()).device)
    choice = choose_method(network, params.explain.method, blank, params.explain.layer)
    shown = None if choice.method is None else (choice.method, choice.layer or "")
    unsealed = dataset.rows("test")
    unsealed = unsealed[np.isin(dataset.image_ids(unsealed).astype(str), test.to_numpy(str))]
    located = []
    for split, rows in (("val", dataset.rows("val")), ("test", unsealed)):
        values = localisation(network, info, dataset, rows)
        located += summarise(values, split, shown, params.evaluate)
    return to_table(located)


if __name__ == "__main__":
    step.command(
        "explain", __doc__, run, ExplainParams,
        {
            "prepared": (artifacts.PREPARED, "what the step preprocess wrote"),
            "models": (artifacts.MODELS, "what the step train wrote"),
            "out": (artifacts.REPORTS, "folder to write"),
        },
    )  # fmt: skip
