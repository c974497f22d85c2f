"""Record what the parameters point to outside this pipeline: the data folder, and code of the user's own.

    python -m tasks.locate

Writes location.json: {"phantom": true} if this machine's data folder (RAL_DATA_ROOT, data_root of ral.toml,
data.root of params.yaml) is the output folder of the step phantom; the path of other data is not recorded.
Writes user_code.json: SHA-256 of the files of your own loss or network, if one is used, so that a change of them trains
again. DVC runs this step every time.
"""

import logging
from pathlib import Path

from ral import artifacts
from ral.config.environment import Environment, load_environment
from ral.config.train import LocateParams
from tasks import step

logger = logging.getLogger("tasks.locate")


def run(params: LocateParams, environment: Environment, phantom: Path, out: Path, code: Path) -> None:
    """Write to `out` whether the data folder is `phantom`, and to `code` the hashes of the user's files.

    Raises:
        UserError: the project has no file of the class that is named.
    """
    from ral.files import write_json
    from ral.user_code import files_in_use

    root = Path(environment.located(params.data).root)
    if environment.data_root is not None and root != Path(params.data.root):
        logger.info(f"data folder: {root} (RAL_DATA_ROOT or ral.toml), not data.root of params.yaml")
    write_json(out, {"phantom": root.resolve() == phantom.resolve()})
    write_json(code, files_in_use(params.model_dump(include={"model", "loss"})))


if __name__ == "__main__":
    step.command(
        "locate", __doc__, run, LocateParams,
        {
            "phantom": (artifacts.PHANTOM, "folder of the embedded data set"),
            "out": (artifacts.LOCATION, "file to write"),
            "code": (artifacts.USER_CODE, "file to write"),
        },
        load_environment,
    )  # fmt: skip
