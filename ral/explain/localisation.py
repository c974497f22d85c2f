"""How well heat maps point at the boxes of findings: values per image, for every method and for two baselines.

Definitions, for a heat map on the pixels of the prepared image and the region of a finding (the union of its boxes;
with several readers, the pixels in the boxes of enough of them):

- pointing game (Zhang et al., ECCV 2016): whether the maximum is in the region; with several equal maxima, the share of
  them. No tolerance is added to the boxes.
- energy (Wang et al., CVPR Workshops 2020): share of the sum of the map that is in the region.
- IoBB (Wang et al., CVPR 2017): the map, scaled to 0 to 255, is cut at 60 and at 180; a box is put around each isolated
  part; the area in the region over the area of that box. An image counts if its best box reaches 0.1, or 0.25.

A map that is 0 everywhere points nowhere: all its values are 0.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy import ndimage

from ral.data.dataset import Dataset
from ral.explain.saliency import Choice, candidates, enlarge, grad_cams, heat_maps
from ral.models import Network
from ral.models.info import ModelInfo
from ral.models.inputs import normalised

Map = NDArray[np.float32]
Region = NDArray[np.bool_]

METRICS = ("pointing", "energy", "iobb_10", "iobb_25")
# Cuts of the map, of 255 gray levels, and the IoBB that counts.
CUTS, REACHED = (60, 180), (0.1, 0.25)
# Baselines: a bell around the centre of the image, and around random points, of this standard deviation as a share of
# the side.
BELL, RANDOM_POINTS = 0.15, 20
BASELINES = ("centre", "random")
# Images per pass: at most BATCH, and at most PIXELS pixels: the feature maps of all layers are kept for the gradient.
BATCH, PIXELS = 64, 2**22


@dataclass(frozen=True)
class Located:
    """Images with boxes of one finding."""

    finding: str
    rows: NDArray[np.int64]
    """Row numbers of the images."""
    regions: Region
    """Where the finding is, [images, size, size]."""


def locate(dataset: Dataset, rows: NDArray[np.int64]) -> list[Located]:
    """The images among `rows` that have boxes, by finding; findings without are left out.

    Args:
        dataset: the prepared data.
        rows: row numbers of images.
    """
    boxes, size = dataset.boxes, dataset.info.size
    if boxes is None:
        return []
    row_of = dict(zip(dataset.image_ids(rows).tolist(), rows.tolist(), strict=True))
    found = []
    for finding in dataset.findings:
        own = boxes[(boxes["finding"] == finding) & boxes["image_id"].isin(row_of)]
        by_row = {
            row_of[str(name)]: region
            for name, part in own.groupby("image_id", sort=True)
            if (region := region_of(part, size)).any()
        }
        if by_row:
            ordered = sorted(by_row)
            regions = np.stack([by_row[row] for row in ordered])
            found.append(Located(finding, np.array(ordered, np.int64), regions))
    return found


def region_of(boxes: pd.DataFrame, size: int) -> Region:
    """The pixels of a finding on an image: in the boxes of at least as many readers as `votes` says.

    Edges are rounded to whole pixels; a box has at least one.

    Args:
        boxes: reader, votes and coordinates of the boxes of one finding on one image.
        size: height and width of the image.
    """
    votes = np.zeros((size, size), np.int64)
    for _, own in boxes.groupby("reader"):
        covered = np.zeros((size, size), bool)
        for left, top, right, bottom in own[["x_min", "y_min", "x_max", "y_max"]].to_numpy():
            covered[_pixels(top, bottom, size), _pixels(left, right, size)] = True
        votes += covered
    return votes >= int(boxes["votes"].iloc[0])


def _pixels(low: float, high: float, size: int) -> slice:
    first = min(round(low), size - 1)
    return slice(first, max(round(high), first + 1))


def measure(heat: Map, region: Region) -> dict[str, float]:
    """The values of one heat map; keys are `METRICS`.

    Args:
        heat: at least 0 [size, size].
        region: where the finding is [size, size].
    """
    if not heat.any():
        return dict.fromkeys(METRICS, 0.0)
    best = iobb(heat, region)
    return {
        "pointing": float(region[heat == heat.max()].mean()),
        "energy": float(heat[region].sum(dtype=np.float64) / heat.sum(dtype=np.float64)),
        **{name: float(best >= reached) for name, reached in zip(METRICS[2:], REACHED, strict=True)},
    }


def iobb(heat: Map, region: Region) -> float:
    """The largest IoBB of the boxes that are detected in a heat map (`detect`)."""
    return max(float(region[box].mean()) for box in detect(heat))


def detect(heat: Map) -> list[tuple[slice, slice]]:
    """The boxes around the isolated parts of a heat map above each of `CUTS`, as rows and columns."""
    levels = heat * (255 / heat.max())
    boxes: list[tuple[slice, slice]] = []
    for cut in CUTS:
        parts, _ = ndimage.label(levels >= cut, structure=np.ones((3, 3)))
        boxes += ndimage.find_objects(parts)
    return boxes


def bell(size: int, x: float, y: float) -> Map:
    """A heat map [size, size] with its maximum at a pixel, that falls off like a bell."""
    pixels = np.arange(size)
    across, down = ((pixels - point) / (BELL * size) for point in (x, y))
    heat: Map = np.exp(-0.5 * (across[None] ** 2 + down[:, None] ** 2)).astype(np.float32)
    return heat


def baseline(name: str, region: Region, seed: int) -> dict[str, float]:
    """The values of a map that does not depend on the image; of random points, the mean of `RANDOM_POINTS`.

    Args:
        name: one of `BASELINES`.
        region: where the finding is [size, size].
        seed: of the random points.
    """
    size = len(region)
    if name == "centre":
        return measure(bell(size, (size - 1) / 2, (size - 1) / 2), region)
    points = np.random.default_rng(seed).integers(size, size=(RANDOM_POINTS, 2))
    values = [measure(bell(size, x, y), region) for x, y in points.tolist()]
    return {metric: float(np.mean([value[metric] for value in values])) for metric in METRICS}


def localisation(
    network: Network, info: ModelInfo, dataset: Dataset, rows: NDArray[np.int64]
) -> pd.DataFrame:
    """The values of every method that the network supports, and of the baselines, on the images that have boxes.

    Args:
        network: in eval mode, on the device of the computation.
        info: content of model.json.
        dataset: the prepared data, with boxes.
        rows: row numbers of the images to look at.

    Returns:
        A row per image, finding and method: method, layer ("" for the last feature map), positions ("8 × 8"), finding,
        image_id, patient_id, and `METRICS`.
    """
    device = next(network.parameters()).device
    found = candidates(network, torch.zeros(1, 1, info.size, info.size, device=device))
    located = locate(dataset, rows)
    tables = [_values(network, info, dataset, part, found) for part in located]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def _values(
    network: Network,
    info: ModelInfo,
    dataset: Dataset,
    located: Located,
    found: dict[Choice, tuple[int, int]],
) -> pd.DataFrame:
    """The rows of one finding."""
    finding = dataset.findings.index(located.finding)
    patients = dataset.column("patient_id", located.rows)
    names = dataset.image_ids(located.rows)
    values = []
    for choice, index, heat in _maps(network, info, dataset, located, finding, found):
        rows, columns = found[choice]
        about = (str(choice.method), choice.layer or "", f"{rows} × {columns}", index)
        values.append((*about, *measure(heat, located.regions[index]).values()))
    for name in BASELINES:
        for index, (row, region) in enumerate(zip(located.rows.tolist(), located.regions, strict=True)):
            values.append((name, "", "", index, *baseline(name, region, row).values()))
    table = pd.DataFrame(values, columns=["method", "layer", "positions", "index", *METRICS])
    order = table.pop("index").to_numpy()
    return table.assign(finding=located.finding, image_id=names[order], patient_id=patients[order])


def _maps(
    network: Network,
    info: ModelInfo,
    dataset: Dataset,
    located: Located,
    finding: int,
    found: dict[Choice, tuple[int, int]],
) -> Iterator[tuple[Choice, int, Map]]:
    """The heat maps of the images of one finding: method, index of the image, map [size, size]."""
    device = next(network.parameters()).device
    step = min(BATCH, max(1, PIXELS // info.size**2))
    for start in range(0, len(located.rows), step):
        pixels = dataset.gather(located.rows[start : start + step])
        images = normalised(torch.from_numpy(pixels).to(device), info)
        layers = [choice.layer for choice in found if choice.method == "grad_cam"]
        cams = dict(zip(layers, grad_cams(network, images, finding, layers), strict=True))
        for choice in found:
            is_cam = choice.method == "grad_cam"
            coarse = cams[choice.layer] if is_cam else heat_maps(network, images, finding, choice)
            for offset, heat in enumerate(enlarge(coarse, info.size).cpu().numpy()):
                yield choice, start + offset, heat
