"""The gallery: thumbnails of the selected images and their heat maps, described in gallery.json."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ral.config.explain import ExplainConfig
from ral.data.dataset import Dataset
from ral.explain.saliency import Choice, choose_method, enlarge, grad_cam, rollout
from ral.explain.select import KINDS, SelectedImage, Selection
from ral.files import write_json
from ral.models import Network
from ral.models.inputs import normalised

NOTICE = "research software, not a medical device"

# matplotlib colormap: perceptually uniform, and without gray, so distinct from the image.
COLOURS = "plasma"
# Opacity of the heat map at its maximum.
OPACITY = 0.6
# Images per forward pass; the attention of all layers is kept in memory.
BATCH = 16
JPEG = {"quality": 90, "subsampling": 0}


def write_gallery(
    folder: Path,
    network: Network,
    metadata: dict[str, Any],
    dataset: Dataset,
    selections: list[Selection],
    config: ExplainConfig,
) -> None:
    """Write gallery.json and, if images may be shown, image_NNN.jpg (gray) and map_NNN.jpg (with heat map
    overlay).

    File names are numbered, because image ids come from the data and may contain anything.

    Args:
        folder: output folder; exists and is empty.
        network: in eval mode, on the device of the computation.
        metadata: content of model.json.
        dataset: the prepared data.
        selections: one per finding, in the order of the outputs.
        config: the section explain.

    Raises:
        UserError: the network does not support the method.
    """
    content: dict[str, Any] = {
        "notice": NOTICE,
        "data": "phantom" if metadata["phantom"] or dataset.metadata["phantom"] else "images",
        "images": config.show_images,
        "per_kind": config.per_kind,
        "findings": [_finding_entry(selection) for selection in selections],
    }
    if config.show_images:
        content |= _add_pictures(content["findings"], folder, network, metadata, dataset, config)
    write_json(folder / "gallery.json", content)


def overlay(image: NDArray[np.uint8], heat: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Overlay a heat map [size, size] of 0..1 on an image uint8 [size, size], as RGB; zero heat leaves it unchanged."""
    import matplotlib

    colours = matplotlib.colormaps[COLOURS](heat)[..., :3] * 255
    opacity = OPACITY * heat[..., None].astype(np.float64)
    return np.rint(image[..., None] * (1 - opacity) + colours * opacity).astype(np.uint8)


def save(path: Path, picture: NDArray[np.uint8], longest: int) -> None:
    """Write an image as JPEG, downscaled if its side exceeds `longest`."""
    thumbnail = Image.fromarray(picture)
    if thumbnail.width > longest:
        thumbnail = thumbnail.resize((longest, longest), Image.Resampling.BOX)
    thumbnail.save(path, "JPEG", **JPEG)


def _finding_entry(selection: Selection) -> dict[str, Any]:
    """The entry of a finding in gallery.json, without pictures."""

    def entry(image: SelectedImage) -> dict[str, Any]:
        return {"image_id": image.image_id, "logit": round(image.logit, 6), "rank": image.rank}

    return {
        "finding": selection.finding,
        "positives": selection.positives,
        "negatives": selection.negatives,
        "unknown": selection.unknown,
        "note": selection.note,
        **{kind: [entry(image) for image in getattr(selection, kind)] for kind in KINDS},
    }


def _add_pictures(
    findings: list[dict[str, Any]],
    folder: Path,
    network: Network,
    metadata: dict[str, Any],
    dataset: Dataset,
    config: ExplainConfig,
) -> dict[str, Any]:
    """Write the pictures, and add their file names and labels to the entries. Returns keys shared by all heat maps."""
    rows = {name: row for row, name in enumerate(dataset.studies["image_id"])}
    labels = dataset.targets()
    device = next(network.parameters()).device
    size = metadata["size"]
    choice = choose_method(network, config.method, torch.zeros(1, 1, size, size, device=device))
    names: dict[int, str] = {}
    maps, positions = 0, None  # number of heat maps written, and their rows and columns
    for output, finding in enumerate(findings):
        entries = [entry for kind in KINDS for entry in finding[kind]]
        for start in range(0, len(entries), BATCH):
            batch = entries[start : start + BATCH]
            batch_rows = np.array([rows[entry["image_id"]] for entry in batch])
            pixels = dataset.gather(batch_rows)
            for row, image, entry in zip(batch_rows, pixels, batch, strict=True):
                if row not in names:
                    names[row] = f"image_{len(names) + 1:03d}.jpg"
                    save(folder / names[row], image, config.thumbnail)
                entry["image"] = names[row]
                image_labels = dict(zip(dataset.findings, labels[row], strict=True))
                entry["labels"] = [name for name, label in image_labels.items() if label == 1]
                entry["unknown"] = [name for name, label in image_labels.items() if np.isnan(label)]
            if choice.method is None:
                continue
            images = normalised(torch.from_numpy(pixels).to(device), metadata)
            coarse = heat_maps(network, images, output, choice)
            positions = list(coarse.shape[1:])
            heat = enlarge(coarse, size).cpu().numpy()
            for image, heat_map, entry in zip(pixels, heat, batch, strict=True):
                maps += 1
                entry["map"] = f"map_{maps:03d}.jpg"
                entry["empty_map"] = not heat_map.any()
                save(folder / entry["map"], overlay(image, heat_map), config.thumbnail)
    return {
        "method": choice.method,
        "layer": choice.layer,
        "reason": choice.reason,
        "positions": positions,
        "colours": COLOURS,
        "image_size": size,
        "picture_size": min(size, config.thumbnail),
    }


def heat_maps(network: Network, images: torch.Tensor, finding: int, choice: Choice) -> torch.Tensor:
    """Heat maps [images, rows, columns] of a finding, by the chosen method."""
    if choice.method == "rollout":
        return rollout(network, images)
    return grad_cam(network, images, finding, choice.layer)
