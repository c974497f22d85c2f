"""Split the patients and prepare labels and pixels for training, with Dask.

    python -m tasks.preprocess

Writes studies.parquet (a row per film, in the order of the pixels), split.parquet, class_counts.json,
quarantine.parquet (what was left out, and why), dataset.json and shards/ (Arrow IPC, uint8 grayscale).
The environment variable RAL_WORKERS sets the number of threads; the bytes written do not depend on it.
"""

import os
from pathlib import Path

from ral.config.base import load
from ral.config.data import PreprocessParams
from ral.errors import UserError
from tasks import step


def run(params: PreprocessParams, validated: Path, out: Path, baseline: Path) -> None:
    """Prepare the films listed by the step validate into `out`.

    Raises:
        UserError: a film is no image, an archive is damaged, the split leaves nothing to learn or to test.
    """
    import pandas as pd

    from ral.config.dask import DaskTarget
    from ral.data.prepare import prepare
    from ral.data.split import scarce
    from ral.files import new_folder, read_json
    from ral.progress import Progress

    verdict = read_json(validated / "verdict.json")
    films = pd.read_parquet(validated / "films.parquet")
    with (
        new_folder(out) as draft,
        Progress("packing films", verdict["rows"] - verdict["rows_without_film"], "films") as progress,
    ):
        prepare(params, films, draft, DaskTarget(workers=workers()), progress.add, baseline=baseline)
    facts = read_json(out / "dataset.json")
    for line in scarce(read_json(out / "class_counts.json")):
        print(f"warning: {line}")
    left = "".join(f", {count:,} left out: {reason}" for reason, count in facts["left_out"].items())
    kind = "PHANTOM films: " if facts["phantom"] else ""
    print(f"{kind}{facts['films']:,} films of {facts['patients']:,} patients prepared{left}")


def workers() -> int:
    """Threads to use: RAL_WORKERS, or the processor's cores.

    Raises:
        UserError: RAL_WORKERS is no positive number.
    """
    text = os.environ.get("RAL_WORKERS", str(os.cpu_count() or 1))
    if not text.isdigit() or int(text) < 1:
        raise UserError(f"RAL_WORKERS is {text!r}. Set it to a whole number of threads from 1, or unset it.")
    return int(text)


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
        lambda: run(load(options.params, PreprocessParams), options.validated, options.out, options.baseline),
    )
