"""A release's packet: all that is needed to judge, use and bring back a model, with the SHA-256 of every file."""

import shutil
from pathlib import Path
from typing import Any

from ral.config.base import load, read_yaml
from ral.config.data import PreprocessConfig
from ral.config.params import Params
from ral.errors import UserError
from ral.files import read_json, sha256, write_json

MANIFEST, MODEL = "manifest.json", "model/model.safetensors"

# Name in the packet -> where the stages of dvc.yaml write it.
FILES = {
    "report.html": "reports/report.html",
    "model_card.md": "reports/model_card.md",
    "metrics.json": "reports/metrics.json",
    MODEL: "models/model.safetensors",
    "model/model.json": "models/model.json",
    "split.parquet": "data/prepared/split.parquet",
    "params.yaml": "params.yaml",
    "dvc.lock": "dvc.lock",
}

# Of the section preprocess, what changes the pixels of an image.
PIXELS = ("size", "fit")


def build(workspace: Path, verdict: dict[str, Any], commit: str, folder: Path) -> None:
    """Write a packet from what a whole run left in a workspace.

    Args:
        workspace: the project's folder with data/, models/, reports/, params.yaml and dvc.lock.
        verdict: of the gate.
        commit: that the run was of, 40 hexadecimal digits.
        folder: to write into; it exists and is empty.

    Raises:
        UserError: a file of the run is missing, its weights are damaged or not finite, or params.yaml is wrong.
    """
    from ral.models.load import read_weights

    read_weights(there(workspace / FILES[MODEL]))
    for name, source in FILES.items():
        path = there(workspace / source)
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(path, folder / name)
    write_json(folder / "verdict.json", verdict)
    data = read_json(there(workspace / "data/validated/verdict.json"))
    write_json(folder / "profile.json", data["profile"])
    model = read_json(folder / "model/model.json")
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    content = {
        "commit": commit,
        "data_manifest": sha256(there(workspace / "data/manifest.json")),
        "phantom": bool(model["phantom"]),
        "findings": model["findings"],
        "preparation": preparation(workspace / "params.yaml"),
        "params": read_yaml(workspace / "params.yaml"),
        "files": {name: sha256(folder / name) for name in names},
    }
    write_json(folder / MANIFEST, content)


def check(folder: Path) -> dict[str, Any]:
    """Hold a packet against its manifest before it is used.

    Returns:
        The content of manifest.json.

    Raises:
        UserError: there is no packet, or a file of it is missing or not what was registered.
    """
    remedy = "Bring the packet back from a backup, or use another release (python -m ral.release list)."
    if not (folder / MANIFEST).is_file():
        raise UserError(f"{folder} has no packet: it was pruned or removed. {remedy}")
    try:
        content = dict(read_json(folder / MANIFEST))
        files = dict(content["files"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / MANIFEST} is damaged ({error}). {remedy}") from None
    for name, digest in files.items():
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} is missing. {remedy}")
        if sha256(folder / name) != digest:
            raise UserError(f"{folder / name} is not what was registered: its bytes have changed. {remedy}")
    return content


def preparation(params: Path) -> dict[str, Any]:
    """How images become pixels by a params.yaml: what two models must have in common to be scored on the same ones.

    Raises:
        UserError: see `ral.config.base.load`.
    """
    config: PreprocessConfig = load(params, Params).preprocess
    return {name: getattr(config, name) for name in PIXELS}


def there(path: Path) -> Path:
    """The path of a file that a run must have left.

    Raises:
        UserError: it is not there.
    """
    if not path.is_file():
        raise UserError(
            f"{path} does not exist, but a release needs it. Run the whole pipeline first (dvc repro)."
        )
    return path
