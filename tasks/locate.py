"""Record whether the data is the embedded data set, so that it is drawn only if it is used.

    python -m tasks.locate

Writes location.json: {"phantom": true} if this machine's data folder (RAL_DATA_ROOT, data_root of ral.toml,
data.root of params.yaml) is the output folder of the step phantom. DVC runs this step every time; the path of
other data is not recorded.
"""

import logging
from pathlib import Path

from ral.config.base import load
from ral.config.data import ManifestParams
from ral.config.environment import Environment, load_environment
from tasks import step

logger = logging.getLogger("tasks.locate")


def run(params: ManifestParams, environment: Environment, phantom: Path, out: Path) -> None:
    """Record whether the data folder is `phantom`."""
    from ral.files import write_json

    root = Path(environment.located(params.data).root)
    if environment.data_root is not None and root != Path(params.data.root):
        logger.info(f"data folder: {root} (RAL_DATA_ROOT or ral.toml), not data.root of params.yaml")
    write_json(out, {"phantom": root.resolve() == phantom.resolve()})


if __name__ == "__main__":
    options = step.parse(
        __doc__,
        {
            "phantom": ("data/phantom", "folder of the embedded data set"),
            "out": ("data/location.json", "file to write"),
        },
    )
    step.main(
        "locate",
        lambda: run(load(options.params, ManifestParams), load_environment(), options.phantom, options.out),
    )
