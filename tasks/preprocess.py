"""Split patients and prepare labels and pixels for training, with Dask.

    python -m tasks.preprocess

Writes studies.parquet (one row per image, in the order of the pixels), split.parquet, class_counts.json,
quarantine.parquet (excluded rows and images with the reason), dataset.json and shards/ (Arrow IPC, uint8 grayscale).
ral.toml configures where Dask's workers run (docs/images.md); the output does not depend on it.
"""

import logging
from pathlib import Path

from ral import artifacts
from ral.config.data import PreprocessParams
from ral.config.environment import Environment, load_environment
from ral.errors import plain
from ral.labels import marked
from tasks import step

logger = logging.getLogger("tasks.preprocess")


def run(
    params: PreprocessParams, environment: Environment, validated: Path, out: Path, baseline: Path
) -> None:
    """Prepare the images listed by the step validate into `out`.

    Raises:
        UserError: an image cannot be decoded, an archive is damaged, or the split is unusable.
    """
    import pandas as pd

    from ral.data.dataset_info import DatasetInfo, read_class_counts
    from ral.data.prepare import prepare
    from ral.data.splits.methods import low_support_warnings
    from ral.data.validation.result import ValidationResult
    from ral.files import atomic_directory
    from ral.memory import keep_freed_memory
    from ral.progress import Progress

    keep_freed_memory()
    params = params.model_copy(update={"data": environment.located(params.data)})
    validation = ValidationResult.read(validated / artifacts.VALIDATION.name)
    columns = ["image_id", "path", "member", "offset", "hash"]
    images = pd.read_parquet(validated / artifacts.IMAGES.name, columns=columns)
    with (
        atomic_directory(out) as draft,
        Progress("packing images", validation.rows - validation.rows_without_image, "images") as progress,
    ):
        prepare(params, images, draft, environment.dask, progress.add, environment.state_dir, baseline)
    info = DatasetInfo.read(out / artifacts.DATASET.name)
    for line in low_support_warnings(read_class_counts(out / artifacts.CLASS_COUNTS.name)):
        logger.warning("%s", plain(line))
    same = info.same_image
    if same.images:
        logger.warning(
            f"{same.images:,} images are listed under more than one patient with identical pixels "
            f"({same.patients:,} patients); the patients of {same.apart:,} are in more than one split (see "
            f"split.same_image). The first: {plain(', '.join(same.examples[0]))}."
        )
    for note in info.notes.values():
        shown = plain(", ".join(note.examples)) + (", …" if note.images > len(note.examples) else "")
        logger.warning(f"{note.images:,} image{'s' * (note.images > 1)} ({shown}): {note.text}")
    if info.boxes:
        skipped = info.boxes.no_image + info.boxes.cut_off
        logger.info(
            f"{info.boxes.boxes:,} boxes on {info.boxes.images:,} images"
            + (f"; {skipped:,} left out: their images are not used, or cut there" if skipped else "")
        )
    excluded = "".join(f", {count:,} excluded: {reason}" for reason, count in info.left_out.items())
    done = f"{info.images:,} images of {info.patients:,} patients prepared{excluded}"
    logger.info(marked(done, info.phantom))


if __name__ == "__main__":
    step.command(
        "preprocess", __doc__, run, PreprocessParams,
        {
            "validated": (artifacts.VALIDATED, "output of the step validate"),
            "out": (artifacts.PREPARED, "folder to write"),
            "baseline": (artifacts.BASELINE, "folder with the accepted split, if any"),
        },
        load_environment,
    )  # fmt: skip
