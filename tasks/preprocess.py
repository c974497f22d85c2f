"""Split the patients and prepare labels and pixels for training, with Dask.

    python -m tasks.preprocess

Writes studies.parquet (a row per image, in the order of the pixels), split.parquet, class_counts.json,
quarantine.parquet (what was left out, and why), dataset.json and shards/ (Arrow IPC, uint8 grayscale).
Where Dask's workers run, ral.toml says (docs/images.md); the bytes written do not depend on it.
"""

from pathlib import Path

from ral.config.base import load
from ral.config.data import PreprocessParams
from ral.config.environment import Environment, load_environment
from ral.errors import plain
from tasks import step


def run(
    params: PreprocessParams, environment: Environment, validated: Path, out: Path, baseline: Path
) -> None:
    """Prepare the images listed by the step validate into `out`.

    Raises:
        UserError: an image is no image, an archive is damaged, the split leaves nothing to learn or to test.
    """
    import pandas as pd

    from ral.data.prepare import prepare
    from ral.data.splits.methods import low_support_warnings
    from ral.files import atomic_directory, read_json
    from ral.progress import Progress

    params = params.model_copy(update={"data": environment.located(params.data)})
    validation = read_json(validated / "validation.json")
    columns = ["image_id", "path", "member", "offset", "hash"]
    images = pd.read_parquet(validated / "images.parquet", columns=columns)
    with (
        atomic_directory(out) as draft,
        Progress(
            "packing images", validation["rows"] - validation["rows_without_image"], "images"
        ) as progress,
    ):
        prepare(params, images, draft, environment.dask, progress.add, environment.state_dir, baseline)
    facts = read_json(out / "dataset.json")
    for line in low_support_warnings(read_json(out / "class_counts.json")):
        print(f"warning: {plain(line)}")
    same = facts["same_image"]
    if same["images"]:
        print(
            f"warning: {same['images']:,} images stand under more than one patient, equal pixel by pixel "
            f"({same['patients']:,} patients); the patients of {same['apart']:,} are in more than one split (see "
            f"split.same_image). The first: {plain(', '.join(same['examples'][0]))}."
        )
    for told in facts["notes"].values():
        shown = plain(", ".join(told["examples"])) + (", …" if told["images"] > len(told["examples"]) else "")
        print(f"warning: {told['images']:,} image{'s' * (told['images'] > 1)} ({shown}): {told['text']}")
    left = "".join(f", {count:,} left out: {reason}" for reason, count in facts["left_out"].items())
    kind = "PHANTOM images: " if facts["phantom"] else ""
    print(f"{kind}{facts['images']:,} images of {facts['patients']:,} patients prepared{left}")


if __name__ == "__main__":
    options = step.parse(
        __doc__,
        {
            "validated": ("data/validated", "what the step validate wrote"),
            "out": ("data/prepared", "folder to write"),
            "baseline": ("baseline", "the accepted split, if there is one"),
        },
    )
    step.main(
        "preprocess",
        lambda: run(
            load(options.params, PreprocessParams),
            load_environment(),
            options.validated,
            options.out,
            options.baseline,
        ),
    )
