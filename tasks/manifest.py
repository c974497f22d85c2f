"""Identify the raw data by content hashes, so that the other steps depend on its content and not on its location.

    python -m tasks.manifest

Writes manifest.json: bytes and SHA-256 of every table and archive, and of the single images of each folder. Files with
unchanged size and modification time are not read again. With data.exclude_patients, it has the SHA-256 of that file,
and one hash without names for all files: names may contain ids. DVC runs this step every time, and the others only if
the manifest has changed.
"""

from pathlib import Path

from ral import artifacts
from ral.config.data import ManifestParams
from ral.config.environment import Environment, load_environment
from tasks import step


def run(params: ManifestParams, environment: Environment, out: Path) -> None:
    """Write the manifest of the data folder.

    Raises:
        UserError: the folder is missing or empty, an archive is damaged, or the file that excludes patients is invalid.
    """
    from ral.data.exclusions import Exclusions
    from ral.data.images.file_hashes import FileHashCache
    from ral.data.manifest import manifest_bytes, read_manifest, without_names
    from ral.progress import Progress

    exclusions = Exclusions.of(params.data)
    root = Path(environment.located(params.data).root)
    with Progress("reading raw data", manifest_bytes(root), "B") as progress:
        manifest = read_manifest(root, progress.add, FileHashCache(environment.state_dir))
    if exclusions.sha256:
        manifest = without_names(manifest, exclusions.sha256)
    manifest.write(out)


if __name__ == "__main__":
    paths = {"out": (artifacts.MANIFEST, "file to write")}
    step.command("manifest", __doc__, run, ManifestParams, paths, load_environment)
