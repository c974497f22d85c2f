"""Store the features that the classifier of the trained network reads, of the images of all splits.

    python -m tasks.features

Off unless features.precision is set: the folder then only has a note. Otherwise it has features.npy (memory-mapped
[images, width], in the order of the prepared images) and bank.json. `python -m ral.training.refit` fits classifiers to
it. Uses a GPU if available.
"""

import logging
from pathlib import Path

from ral import artifacts
from ral.config.features import FeaturesParams
from tasks import step

logger = logging.getLogger("tasks.features")

NOTE = "not_written.txt"
OFF = "features.precision is null: no features are written.\n"


def run(params: FeaturesParams, prepared: Path, models: Path, out: Path) -> None:
    """Write the bank of the network in `models` for the images in `prepared` to `out`, or only a note.

    Raises:
        UserError: the classifier is not one linear layer, a feature is not finite in this precision, or memory does
            not suffice for one image.
    """
    from ral.files import atomic_directory

    precision = params.features.precision
    if precision is None:
        with atomic_directory(out) as draft:
            (draft / NOTE).write_text(OFF, encoding="utf-8")
        for name in (artifacts.BANK.name, artifacts.FEATURE_ARRAY.name):  # of an earlier run
            (out / name).unlink(missing_ok=True)
        return
    import torch

    from ral.data.dataset import open_dataset
    from ral.inference.bank import write_bank
    from ral.memory import keep_freed_memory

    keep_freed_memory()
    torch.set_num_threads(params.features.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    info = write_bank(out, models, open_dataset(prepared), precision, device)
    (out / NOTE).unlink(missing_ok=True)
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
