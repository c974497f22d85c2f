"""Writes an export: the model in its format, what is needed to use it, and export.json, the index."""

import shutil
from pathlib import Path
from typing import Any

import torch

from ral.errors import UserError
from ral.export import check
from ral.export.card import export_card
from ral.export.load import FORMAT, INDEX, reader
from ral.export.source import Kind, Source, find_source
from ral.files import atomic_directory, sha256, write_json
from ral.inference.score import normalised
from ral.models import Network
from ral.models.load import load_model

CARD = "README.md"

_FIT = {
    "stretch": "stretched to a square",
    "pad": "padded with black to a square",
    "crop": "cropped to the central square",
}


def export(kind: Kind, model: Path, out: Path) -> float:
    """Export a trained model, and compare the written model with the network on phantom images.

    Args:
        kind: timm, onnx or torch.
        model: see `find_source`.
        out: new or empty folder; it is complete or not written at all.

    Returns:
        Largest absolute difference of a logit.

    Raises:
        UserError: `out` is not empty, the model is incomplete or damaged, the format cannot represent it, its extra is
            not installed, or the logits differ by more than `check.TOLERANCE`.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"-o: {out} exists and is not an empty folder. Choose another one, or remove it.")
    source = find_source(model)
    network, metadata = load_model(source.model)
    if source.preprocess["size"] != metadata["size"]:
        raise UserError(
            f"{source.model} was trained on images of {metadata['size']} pixels, but preprocess.size is "
            f"{source.preprocess['size']}. Restore the parameters of its training, or train again."
        )
    images = normalised(check.phantom_images(metadata["size"]), metadata)
    with atomic_directory(out) as draft:
        _write_model(kind, network, metadata, source, draft)
        difference = check.largest_difference(network, reader(kind)(draft), images)
        shutil.copyfile(source.model / "model.json", draft / "model.json")
        shutil.copyfile(source.calibration, draft / "calibration.json")
        card = export_card(
            source.card.read_text(encoding="utf-8"), kind, _placeholders(metadata, source, network)
        )
        (draft / CARD).write_text(card, encoding="utf-8")
        write_json(draft / INDEX, _index(kind, metadata, source, difference, draft))
    return difference


def _write_model(
    kind: Kind, network: Network, metadata: dict[str, Any], source: Source, folder: Path
) -> None:
    if kind == "timm":
        from ral.export import timm_folder

        timm_folder.write(network, metadata, source.preprocess, folder)
    elif kind == "onnx":
        from ral.export import onnx_model

        onnx_model.write(network, metadata, folder)
    else:
        from ral.export import torch_program

        torch_program.write(network, metadata, folder)


def _placeholders(metadata: dict[str, Any], source: Source, network: Network) -> dict[str, str]:
    size = metadata["size"]
    return {
        "SIZE": str(size),
        "MEAN": str(metadata["pixel_mean"]),
        "DEVIATION": str(metadata["pixel_deviation"]),
        "MODE": "L" if network.channels == 1 else "RGB",
        "PREPARATION": f"8-bit gray, {_FIT[source.preprocess['fit']]}, resized to {size} × {size} by area averaging",
    }


def _index(
    kind: Kind, metadata: dict[str, Any], source: Source, difference: float, folder: Path
) -> dict[str, Any]:
    """The content of export.json."""
    files = sorted(path.name for path in folder.iterdir())
    return {
        "format": FORMAT,
        "kind": kind,
        "findings": metadata["findings"],
        "phantom": metadata["phantom"],
        "input": {
            "name": "images",
            "dtype": "float32",
            "shape": ["batch", 1, metadata["size"], metadata["size"]],
            "values": "(gray value 0 to 255 - pixel_mean) / pixel_deviation",
        },
        "output": {"name": "logits", "shape": ["batch", len(metadata["findings"])], "values": "raw logits"},
        "preprocessing": source.preprocess
        | {"pixel_mean": metadata["pixel_mean"], "pixel_deviation": metadata["pixel_deviation"]},
        "check": {
            "phantom_images": check.IMAGES,
            "seed": check.SEED,
            "tolerance": check.TOLERANCE,
            "largest_difference": difference,
            "torch": str(torch.__version__),
        },
        "files": {name: sha256(folder / name) for name in files},
    }
