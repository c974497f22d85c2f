"""Writes an export: the model in its format, what is needed to use it, and export.json, the index."""

import shutil
from pathlib import Path
from typing import Any

import torch

from ral.errors import UserError
from ral.export import check
from ral.export.card import export_card
from ral.files import atomic_directory, sha256, write_json
from ral.inference import pt2
from ral.inference.export_folder import CARD, FORMAT, INDEX, MODEL_FILES, Kind
from ral.inference.exported import Logits, read_onnx
from ral.inference.released import ReleasedModel, find_model, open_model
from ral.inference.scoring import one_thread
from ral.models import Network
from ral.models.inputs import normalised

_FIT = {
    "stretch": "stretched to a square",
    "pad": "padded with black to a square",
    "crop": "cropped to the central square",
}


def export(kind: Kind, model: str | Path, out: Path) -> float:
    """Export a trained model, and compare the written model with the network on phantom images.

    Args:
        kind: timm, onnx or torch.
        model: see `find_model`.
        out: new or empty folder; it is complete or not written at all.

    Returns:
        Largest absolute difference of a logit.

    Raises:
        UserError: `out` is not empty, the model is incomplete or damaged, the format cannot represent it, its extra is
            not installed, or the logits differ by more than `check.TOLERANCE`.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"-o: {out} exists and is not an empty folder. Choose another one, or remove it.")
    source = open_model(find_model(model))
    network = source.network
    if source.files.exported is not None or not isinstance(network, Network):
        raise UserError(
            f"--model: {model} is an export. Export the model that it was made from: its release or project folder."
        )
    if not source.files.card.is_file():
        raise UserError(
            f"{source.files.card} does not exist, but an export needs it. Run the whole pipeline first (dvc repro)."
        )
    images = normalised(check.phantom_images(source.preparation.size), source.info)
    with atomic_directory(out) as draft:
        _write_model(kind, network, source, draft)
        with one_thread():  # rounding, and so the bytes of export.json, depend on their number
            difference = check.largest_difference(network, _read_model(kind, draft), images)
        shutil.copyfile(source.files.folder / "model.json", draft / "model.json")
        shutil.copyfile(source.files.calibration, draft / "calibration.json")
        card = export_card(
            source.files.card.read_text(encoding="utf-8"), kind, _placeholders(source, network)
        )
        (draft / CARD).write_text(card, encoding="utf-8")
        write_json(draft / INDEX, _index(kind, source, difference, draft))
    return difference


def _read_model(kind: Kind, folder: Path) -> Logits:
    """Open the written model as its users do: timm's with timm alone."""
    if kind == "timm":
        from ral.export import timm_folder

        return timm_folder.read(folder)
    return (read_onnx if kind == "onnx" else pt2.read)(folder / MODEL_FILES[kind])


def _write_model(kind: Kind, network: Network, source: ReleasedModel, folder: Path) -> None:
    if kind == "timm":
        from ral.export import timm_folder

        timm_folder.write(network, source.info, source.preparation.fit, folder)
    elif kind == "onnx":
        from ral.export import onnx_model

        onnx_model.write(network, source.info, folder)
    else:
        from ral.export import torch_program

        torch_program.write(network, source.info, folder)


def _placeholders(source: ReleasedModel, network: Network) -> dict[str, str]:
    info, size = source.info, source.preparation.size
    return {
        "SIZE": str(size),
        "MEAN": str(info.pixel_mean),
        "DEVIATION": str(info.pixel_deviation),
        "MODE": "L" if network.channels == 1 else "RGB",
        "PREPARATION": f"8-bit gray, {_FIT[source.preparation.fit]}, resized to {size} × {size} by area averaging",
    }


def _index(kind: Kind, source: ReleasedModel, difference: float, folder: Path) -> dict[str, Any]:
    """The content of export.json."""
    info = source.info
    files = sorted(path.name for path in folder.iterdir())
    return {
        "format": FORMAT,
        "kind": kind,
        "findings": info.findings,
        "phantom": info.phantom,
        "input": {
            "name": "images",
            "dtype": "float32",
            "shape": ["batch", 1, info.size, info.size],
            "values": "(gray value 0 to 255 - pixel_mean) / pixel_deviation",
        },
        "output": {"name": "logits", "shape": ["batch", len(info.findings)], "values": "raw logits"},
        "preprocessing": source.preparation.model_dump()
        | {"pixel_mean": info.pixel_mean, "pixel_deviation": info.pixel_deviation},
        "check": {
            "phantom_images": check.IMAGES,
            "seed": check.SEED,
            "tolerance": check.TOLERANCE,
            "largest_difference": difference,
            "torch": str(torch.__version__),
        },
        "files": {name: sha256(folder / name) for name in files},
    }
