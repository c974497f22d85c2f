"""A folder that `ral export` wrote: its index export.json, checked before the model is opened."""

from pathlib import Path
from typing import Any, Literal, get_args

from ral.errors import UserError
from ral.files import read_json, sha256

INDEX, FORMAT = "export.json", 1

Kind = Literal["timm", "onnx", "torch"]
KINDS: tuple[Kind, ...] = get_args(Kind)

# The file of the model by format; that of a large ONNX model has its weights beside it.
MODEL_FILES: dict[Kind, str] = {"timm": "model.safetensors", "onnx": "model.onnx", "torch": "model.pt2"}
BESIDE = ".data"

CARD = "README.md"

_REMEDY = "Export the model again (ral export)."


def verify_export(folder: Path) -> dict[str, Any]:
    """Check an export against export.json before it is used.

    Returns:
        The content of export.json.

    Raises:
        UserError: it is of another version, or a file is missing, damaged, changed or not listed.
    """
    path = folder / INDEX
    try:
        index = dict(read_json(path))
        number, kind, files = index["format"], index["kind"], dict(index["files"])
    except (ValueError, KeyError, TypeError) as error:
        raise damaged(path, error) from None
    if number != FORMAT or kind not in KINDS:
        raise UserError(f"{path} has the format {number}, kind {kind}: of another version. {_REMEDY}")
    for name, digest in files.items():
        if not (folder / name).is_file() or sha256(folder / name) != digest:
            raise UserError(f"{folder / name} is missing or has changed since the export. {_REMEDY}")
    for name in (MODEL_FILES[kind], "model.json", "calibration.json"):
        if name not in files:
            raise UserError(f"{path} does not list {name}. {_REMEDY}")
    for used in model_files(kind, folder):
        if used.name not in files:
            raise UserError(f"{used} is not listed in {path}, but would be read with the model. {_REMEDY}")
    return index


def model_files(kind: Kind, folder: Path) -> list[Path]:
    """The files of the model itself, which identify it."""
    path = folder / MODEL_FILES[kind]
    beside = path.with_name(path.name + BESIDE)
    return [path, beside] if beside.is_file() else [path]


def damaged(path: Path, error: Exception) -> UserError:
    """The error about a file of an export that cannot be read."""
    if not path.is_file():
        return UserError(f"{path} does not exist. {_REMEDY}")
    return UserError(f"{path} is damaged ({type(error).__name__}: {str(error)[:300]}). {_REMEDY}")
