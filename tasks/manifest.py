"""Record by content what lies outside the pipeline, so that other steps depend on it wherever it lies.

    python -m tasks.manifest

Writes manifest.json: bytes and SHA-256 of every table and archive of the data folder, and of the single images of each
folder. Files with unchanged size and modification time are not read again. With data.exclude_patients, it has the
SHA-256 of that file, and one hash without names for all files: names may contain ids.
Writes location.json: {"phantom": true} if this machine's data folder (RAL_DATA_ROOT, data_root of ral.toml,
data.root of params.yaml) is the output folder of the step phantom, which DVC tracks itself: the manifest has no files
then. The path of other data is not recorded.
Writes user_code.json: SHA-256 of the files of your own loss or network, if one is used, so that a change of them trains
again. DVC runs this step every time, and the others only if an output of it has changed.
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from ral import artifacts
from ral.config.environment import Environment, load_environment
from ral.config.train import ManifestParams
from ral.errors import UserError
from tasks import step

if TYPE_CHECKING:
    from ral.data.manifest import Manifest

logger = logging.getLogger("tasks.manifest")


def run(
    params: ManifestParams, environment: Environment, phantom: Path, out: Path, location: Path, code: Path
) -> None:
    """Write the manifest of the data folder to `out`, to `location` whether that is `phantom`, and to `code` the hashes
    of the user's files.

    Raises:
        UserError: the folder is missing, empty or in `phantom`, which DVC deletes; an archive is damaged, the file that
            excludes patients is invalid, or the project has no file of the class that is named.
    """
    from ral.files import write_json
    from ral.user_code import files_in_use

    root = Path(environment.located(params.data).root)
    if environment.data_root is not None and root != Path(params.data.root):
        logger.info(f"data folder: {root} (RAL_DATA_ROOT or ral.toml), not data.root of params.yaml")
    is_phantom = root.resolve() == phantom.resolve()
    if phantom.resolve() in root.resolve().parents:
        raise UserError(
            f"The data folder {root} is in {phantom}, which the step phantom replaces with all that is in it. "
            "Move your data to another folder."
        )
    write_json(location, {"phantom": is_phantom})
    write_json(code, files_in_use(params.model_dump(include={"model", "loss"})))
    _manifest(params, environment, None if is_phantom else root).write(out)


def _manifest(params: ManifestParams, environment: Environment, root: Path | None) -> "Manifest":
    """Of the data folder, or of none; what needs pandas is imported only where it is needed: this runs every time."""
    from ral.data.manifest import Manifest, manifest_bytes, read_manifest, without_names

    manifest = Manifest(files={}, folders={})
    if root is not None:
        from ral.data.images.file_hashes import FileHashCache
        from ral.progress import Progress

        with Progress("reading raw data", manifest_bytes(root), "B") as progress:
            manifest = read_manifest(root, progress.add, FileHashCache(environment.state_dir))
    if params.data.exclude_patients is not None:
        from ral.data.exclusions import Exclusions

        exclusions = Exclusions.of(params.data)
        assert exclusions.sha256 is not None
        manifest = without_names(manifest, exclusions.sha256)
    return manifest


if __name__ == "__main__":
    step.command(
        "manifest", __doc__, run, ManifestParams,
        {
            "phantom": (artifacts.PHANTOM, "folder of the embedded data set"),
            "out": (artifacts.MANIFEST, "file to write"),
            "location": (artifacts.LOCATION, "file to write"),
            "code": (artifacts.USER_CODE, "file to write"),
        },
        load_environment,
    )  # fmt: skip
