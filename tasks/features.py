"""Store the features that the classifier of the trained network reads, of the images of all splits.

    python -m tasks.features

Off unless features.precision is set: the folder then only has a note. Otherwise it has features.npy (memory-mapped
[images, width], in the order of the prepared images) and bank.json. `python -m ral.training.refit` fits classifiers to
it. Uses a GPU if available.
"""

import logging
import shutil
from pathlib import Path

from ral import artifacts
from ral.config.features import FeaturesParams
from tasks import step

logger = logging.getLogger("tasks.features")

OFF = "features.precision is null: no features are written.\n"


def run(params: FeaturesParams, prepared: Path, models: Path, out: Path) -> None:
    """Write the bank of the network in `models` for the images in `prepared` to `out`, or only a note.

    Raises:
        UserError: the classifier is not one linear layer, a feature is not finite in this precision, or memory does
            not suffice for one image.
    """
    from ral.files import atomic_directory

    shutil.rmtree(
        out, ignore_errors=True
    )  # as DVC does: a bank and the note that there is none exclude each other
    precision = params.features.precision
    if precision is None:
        with atomic_directory(out) as draft:
            (draft / "not_written.txt").write_text(OFF, encoding="utf-8")
        return
    import torch

    from ral.data.dataset import open_dataset
    from ral.inference.bank import write_bank

    torch.set_num_threads(params.features.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    info = write_bank(out, models, open_dataset(prepared), precision, device)
    logger.info("Features of %d images written: %d each, %s", info.images, info.width, precision)


if __name__ == "__main__":
    step.command(
        "features", __doc__, run, FeaturesParams,
        {
            "prepared": (artifacts.PREPARED, "what the step preprocess wrote"),
            "models": (artifacts.MODELS, "what the step train wrote"),
            "out": (artifacts.FEATURES, "folder to write"),
        },
    )  # fmt: skip
