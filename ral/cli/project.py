"""`ral run` and `ral compare`: start a flow of the project folder; the flows are not part of the package."""

import os
import sys
from pathlib import Path

from ral.errors import UserError
from ral.extras import require

# What makes a folder a project folder, beside the module that is started.
FILES = ("params.yaml", "dvc.yaml")


def run(arguments: list[str]) -> int:
    """Run the pipeline, as `python -m flows.train_ral` does."""
    return _start("run", "flows.train_ral", arguments)


def compare(arguments: list[str]) -> int:
    """Run and compare a grid of experiments, as `python -m flows.compare` does."""
    return _start("compare", "flows.compare", arguments)


def _start(name: str, module: str, arguments: list[str]) -> int:
    """Become `python -m MODULE ARGUMENTS` in the working folder, so that signals reach the flow itself.

    Raises:
        UserError: the working folder is no project folder, or the extra `pipeline` is not installed.
    """
    file = Path(*module.split(".")).with_suffix(".py")
    absent = [str(path) for path in (*map(Path, FILES), file) if not path.is_file()]
    if absent:
        raise UserError(
            f"`ral {name}` works in a project folder, and {Path.cwd()} is none: it lacks {', '.join(absent)}. The "
            "pipeline is not part of this package. To get a project folder, clone the repository that the package was "
            f"built from and run `make run` in it; it installs what the pipeline needs. Then use `ral {name}` there."
        )
    require("pipeline", f"`ral {name}`")
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])
