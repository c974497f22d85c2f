"""Opens an export again, whatever its format. Nothing is unpickled."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ral.errors import UserError
from ral.export.check import Logits
from ral.export.source import KINDS, Kind
from ral.files import read_json, sha256

INDEX, FORMAT = "export.json", 1


@dataclass(frozen=True)
class Export:
    """An export on the CPU."""

    logits: Logits
    """Logits [batch, findings] of standardised images float32 [batch, 1, size, size]."""
    index: dict[str, Any]
    """The content of export.json."""
    metadata: dict[str, Any]
    """The content of model.json."""
    calibration: dict[str, Any]
    """The content of calibration.json."""


def load_export(folder: Path) -> Export:
    """Open an export.

    Args:
        folder: written by `ral export`.

    Raises:
        UserError: it is not an export, or a file is missing, damaged or changed.
    """
    remedy = "Export the model again."
    if not (folder / INDEX).is_file():
        raise UserError(f"{folder} has no {INDEX}: it was not written by ral export.")
    try:
        index = dict(read_json(folder / INDEX))
        number, kind, files = index["format"], index["kind"], dict(index["files"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / INDEX} is damaged ({error}). {remedy}") from None
    if number != FORMAT or kind not in KINDS:
        raise UserError(
            f"{folder / INDEX} has the format {number}, kind {kind}: of another version. {remedy}"
        )
    for name, digest in files.items():
        path = folder / name
        if not path.is_file() or sha256(path) != digest:
            raise UserError(f"{path} is missing or has changed since the export. {remedy}")
    for name in ("model.json", "calibration.json"):
        if name not in files:
            raise UserError(f"{folder / INDEX} does not list {name}. {remedy}")
    metadata, calibration = read_json(folder / "model.json"), read_json(folder / "calibration.json")
    return Export(reader(kind)(folder), index, metadata, calibration)


def reader(kind: Kind) -> Callable[[Path], Logits]:
    """The function that opens the model of an export of a format."""
    if kind == "timm":
        from ral.export.timm_folder import read
    elif kind == "onnx":
        from ral.export.onnx_model import read
    else:
        from ral.export.torch_program import read
    return read
