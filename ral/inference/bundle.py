"""Reads a release's bundle (written by `ral.release.bundle`), after checking the SHA-256 of every file."""

from pathlib import Path
from typing import Any

from ral.errors import UserError
from ral.files import read_json, sha256
from ral.preparation import Preparation
from ral.records import Record, problem

BUNDLE, MODEL, CALIBRATION, FINDINGS = (
    "bundle.json", "model/model.safetensors", "calibration.json", "findings.csv",
)  # fmt: skip
# Name of bundle.json in earlier versions.
OLD_BUNDLE = "manifest.json"


class Bundle(Record):
    """Content of bundle.json."""

    commit: str
    """Commit of the run that trained the model, 40 hexadecimal digits."""
    data_manifest: str
    """SHA-256 of data/manifest.json of that run; for phantom data the same for all, see data/phantom in dvc.lock."""
    phantom: bool
    """Whether the model was trained on phantom images."""
    findings: list[str]
    """Names of the outputs, in order."""
    preparation: Preparation
    """How the training images were prepared; other models are scored on the same images only if theirs is equal."""
    params: dict[str, Any]
    """Content of params.yaml of that run."""
    files: dict[str, str]
    """Name in the bundle -> SHA-256."""


def verify(folder: Path) -> Bundle:
    """Check a bundle against bundle.json before it is used.

    Raises:
        UserError: there is no bundle, it is of an earlier version, or a file is missing or has changed.
    """
    remedy = "Restore the bundle from a backup, or use another release (python -m ral.release list)."
    if not (folder / BUNDLE).is_file() and (folder / OLD_BUNDLE).is_file():
        raise UserError(
            f"{folder} is a release bundle of an earlier version, which this one cannot read: files "
            "and keys have other names, so renaming the files is not enough. "
            "Move registry.git, releases, champion and ledger.jsonl out of state_dir and run the nightly flow once "
            "(python -m flows.nightly): it trains and registers a first model. The earlier version can still read the "
            "files that you moved."
        )
    if not (folder / BUNDLE).is_file():
        raise UserError(f"{folder} has no bundle: it was pruned or removed. {remedy}")
    try:
        content = Bundle.model_validate(read_json(folder / BUNDLE))
    except ValueError as error:
        raise UserError(f"{folder / BUNDLE} is damaged ({problem(error)}). {remedy}") from None
    for name, digest in content.files.items():
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} is missing. {remedy}")
        if sha256(folder / name) != digest:
            raise UserError(f"{folder / name} has changed since it was registered. {remedy}")
    if "range" not in content.preparation.model_fields_set:  # an earlier version wrote it to `params` only
        gray_range = content.params.get("preprocess", {}).get("range", "own")
        preparation = content.preparation.model_copy(update={"range": gray_range})
        return content.model_copy(update={"preparation": preparation})
    return content
