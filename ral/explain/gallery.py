"""The gallery: the chosen images and their heat maps as small pictures, and gallery.json that says what each is."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ral.config.explain import ExplainConfig
from ral.data.dataset import Dataset
from ral.explain.saliency import Method, choose_method, enlarge, grad_cam, rollout
from ral.explain.select import KINDS, Chosen, Selection
from ral.files import write_json
from ral.inference.score import normalised
from ral.models import Network

NOTICE = "research software, not a medical device"

# matplotlib's map: perceptually even, and no colour of it is a gray of the image.
COLOURS = "plasma"
# How much of the image the hottest place hides.
OPACITY = 0.6
# Images per pass: attention of all layers is kept for each.
BATCH = 16
JPEG = {"quality": 90, "subsampling": 0}


def write_gallery(
    folder: Path,
    network: Network,
    facts: dict[str, Any],
    dataset: Dataset,
    selections: list[Selection],
    config: ExplainConfig,
) -> None:
    """Write gallery.json, and if images may be shown image_NNN.jpg (gray) and map_NNN.jpg (image under its heat map).

    Pictures have running numbers for names: an image id comes from the data and may be anything.

    Args:
        folder: to write into; it exists and is empty.
        network: in eval mode, on the device to compute on.
        facts: model.json.
        dataset: the prepared data.
        selections: per finding, in the order of the outputs.
        config: the section explain.

    Raises:
        UserError: the network does not allow the method.
    """
    content: dict[str, Any] = {
        "notice": NOTICE,
        "data": "phantom" if facts["phantom"] or dataset.metadata["phantom"] else "images",
        "images": config.show_images,
        "per_kind": config.per_kind,
        "findings": [_listed(selection) for selection in selections],
    }
    if config.show_images:
        content |= _add_pictures(content["findings"], folder, network, facts, dataset, config)
    write_json(folder / "gallery.json", content)


def overlay(image: NDArray[np.uint8], heat: NDArray[np.float32]) -> NDArray[np.uint8]:
    """An image uint8 [size, size] under a heat map [size, size] of 0..1, as RGB; where there is no heat it is unchanged."""
    import matplotlib

    colours = matplotlib.colormaps[COLOURS](heat)[..., :3] * 255
    share = OPACITY * heat[..., None].astype(np.float64)
    return np.rint(image[..., None] * (1 - share) + colours * share).astype(np.uint8)


def save(path: Path, picture: NDArray[np.uint8], longest: int) -> None:
    """Write a picture as JPEG, made smaller if its side is longer than `longest`."""
    thumbnail = Image.fromarray(picture)
    if thumbnail.width > longest:
        thumbnail = thumbnail.resize((longest, longest), Image.Resampling.BOX)
    thumbnail.save(path, "JPEG", **JPEG)


def _listed(selection: Selection) -> dict[str, Any]:
    """A finding as gallery.json has it, without pictures."""

    def entry(image: Chosen) -> dict[str, Any]:
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
    facts: dict[str, Any],
    dataset: Dataset,
    config: ExplainConfig,
) -> dict[str, Any]:
    """Write the pictures and add their names and the images' labels to the entries; what all maps have in common."""
    rows = {name: row for row, name in enumerate(dataset.studies["image_id"])}
    labels = dataset.targets()
    device = next(network.parameters()).device
    size = facts["size"]
    method, why = choose_method(network, config.method, torch.zeros(1, 1, size, size, device=device))
    names: dict[int, str] = {}
    maps, positions = 0, None  # how many were written, and rows and columns of each
    for output, finding in enumerate(findings):
        entries = [entry for kind in KINDS for entry in finding[kind]]
        for start in range(0, len(entries), BATCH):
            batch = entries[start : start + BATCH]
            where = np.array([rows[entry["image_id"]] for entry in batch])
            pixels = dataset.gather(where)
            for row, image, entry in zip(where, pixels, batch, strict=True):
                if row not in names:
                    names[row] = f"image_{len(names) + 1:03d}.jpg"
                    save(folder / names[row], image, config.thumbnail)
                entry["image"] = names[row]
                known = dict(zip(dataset.findings, labels[row], strict=True))
                entry["labels"] = [name for name, label in known.items() if label == 1]
                entry["unknown"] = [name for name, label in known.items() if np.isnan(label)]
            if method is None:
                continue
            images = normalised(torch.from_numpy(pixels).to(device), facts)
            small = heat_maps(network, images, output, method)
            positions = list(small.shape[1:])
            heat = enlarge(small, size).cpu().numpy()
            for image, warm, entry in zip(pixels, heat, batch, strict=True):
                maps += 1
                entry["map"] = f"map_{maps:03d}.jpg"
                entry["empty_map"] = not warm.any()
                save(folder / entry["map"], overlay(image, warm), config.thumbnail)
    return {
        "method": method,
        "no_maps": why,
        "positions": positions,
        "colours": COLOURS,
        "image_size": size,
        "picture_size": min(size, config.thumbnail),
    }


def heat_maps(network: Network, images: torch.Tensor, finding: int, method: Method) -> torch.Tensor:
    """Heat maps [images, rows, columns] of a finding, by either method."""
    return rollout(network, images) if method == "rollout" else grad_cam(network, images, finding)
