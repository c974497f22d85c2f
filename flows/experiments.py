"""Compare DVC experiments by name: paired differences of their logits on the same images.

    python -m flows.experiments grid-1 grid-2 grid-3
    python -m flows.experiments workspace grid-1 --split val

A name is that of an experiment (`dvc exp show`), or a branch, tag or commit that was run here; `workspace` is the
files as they are. The first is the baseline. The logits come from DVC's cache (or its remote), nothing is checked
out. All must have been prepared alike: a comparison needs the same images, labels and split.
`ral.evaluation.compare` does the work.
"""

import argparse
import tempfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from ral import artifacts
from ral.errors import UserError, exit_with_message
from ral.files import sha256

if TYPE_CHECKING:
    from ral.evaluation.rows import Split

WORKSPACE = "workspace"


def fetch(name: str, file: PurePosixPath, target: Path, folder: Path = Path()) -> Path:
    """Write a file as it was in an experiment of the project in `folder` to `target`.

    Raises:
        UserError: there is no such experiment, or it has no such file, or DVC's cache lacks its content.
    """
    from dvc.api import DVCFileSystem
    from dvc.exceptions import DvcException
    from dvc.scm import SCMError
    from dvc_data.index import DataIndexDirError

    try:
        DVCFileSystem(str(folder), rev=None if name == WORKSPACE else name).get_file(str(file), str(target))
    except SCMError as error:
        raise UserError(
            f"{name}: no experiment, branch or commit of this name ({error}). See dvc exp show."
        ) from None
    except (DvcException, DataIndexDirError, OSError):
        remedy = (
            "Run the pipeline first: make run."
            if name == WORKSPACE
            else "It was never run here, or its outputs were removed. Run it, get its outputs with dvc pull, or "
            f"write {WORKSPACE} in its place for the files as they are now."
        )
        raise UserError(f"{name}: DVC has no {file} for it. {remedy}") from None
    return target


def compare_experiments(names: list[str], split: "Split", params: Path, out: Path | None) -> None:
    """Fetch the logits of the experiments and show the comparison.

    Raises:
        UserError: see `fetch`; or the experiments were prepared differently; or see `ral.evaluation.compare.show`.
    """
    import pandas as pd

    from ral.evaluation.compare import check_names, show

    if len(set(names)) < len(names):
        raise UserError("An experiment is named twice: give each once.")
    with tempfile.TemporaryDirectory() as folder:
        models, studies = {}, {}
        for index, name in enumerate(names):
            studies[name] = fetch(name, artifacts.STUDIES, Path(folder, f"studies{index}.parquet"))
            logits = fetch(name, artifacts.logits(split), Path(folder, f"logits{index}.parquet"))
            models[name] = pd.read_parquet(logits)
            check_names(name, models[name])
        digests = {name: sha256(path) for name, path in studies.items()}
        other = [name for name in names if digests[name] != digests[names[0]]]
        if other:
            raise UserError(
                f"{names[0]} and {other[0]} were prepared differently (data, split or preprocess), "
                "so their images or labels are not the same. Compare experiments of the same prepared data."
            )
        show(models, studies[names[0]], split, params, out)


def main() -> None:
    """Compare what the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="+", help="experiments; the first is the baseline")
    parser.add_argument("--split", choices=("val", "test"), default="test")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--out", type=Path, help="CSV to write, too")
    options = parser.parse_args()
    with exit_with_message():
        compare_experiments(options.names, options.split, options.params, options.out)


if __name__ == "__main__":
    main()
