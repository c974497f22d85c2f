"""Reads a release's bundle (written by `ral.release.bundle`), after checking the SHA-256 of every file."""

from pathlib import Path
from typing import Any

from ral.errors import UserError
from ral.files import read_json, sha256

BUNDLE, MODEL, CALIBRATION, FINDINGS = (
    "bundle.json", "model/model.safetensors", "calibration.json", "findings.csv",
)  # fmt: skip
# Name of bundle.json in earlier versions.
OLD_BUNDLE = "manifest.json"


def verify(folder: Path) -> dict[str, Any]:
    """Check a bundle against bundle.json before it is used.

    Returns:
        The content of bundle.json.

    Raises:
        UserError: there is no bundle, it is of an earlier version, or a file is missing or has changed.
    """
    remedy = "Restore the bundle from a backup, or use another release (python -m ral.release list)."
    if not (folder / BUNDLE).is_file() and (folder / OLD_BUNDLE).is_file():
        raise UserError(
            f"{folder} is a release packet of an earlier version: manifest.json is now bundle.json, "
            "verdict.json is now "
            "decision.json, and keys in params.yaml and model.json have new names, so renaming the files is "
            "not enough. "
            "Move registry.git, releases, champion and ledger.jsonl out of state_dir and run the nightly flow once "
            "(python -m flows.nightly): it trains and registers a first model. The earlier version can still read the "
            "files that you moved."
        )
    if not (folder / BUNDLE).is_file():
        raise UserError(f"{folder} has no bundle: it was pruned or removed. {remedy}")
    try:
        content = dict(read_json(folder / BUNDLE))
        files = dict(content["files"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / BUNDLE} is damaged ({error}). {remedy}") from None
    for name, digest in files.items():
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} is missing. {remedy}")
        if sha256(folder / name) != digest:
            raise UserError(f"{folder / name} has changed since it was registered. {remedy}")
    return content
