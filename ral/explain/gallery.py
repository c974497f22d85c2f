"""The gallery: thumbnails of the selected images and their heat maps, described in gallery.json."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image

from ral.config.explain import ExplainConfig
from ral.data.dataset import Dataset
from ral.explain.contents import KINDS, Gallery, GalleryFinding, GalleryImage, HeatMaps, SuspiciousLabel
from ral.explain.review import to_table
from ral.explain.saliency import choose_method, enlarge, heat_maps
from ral.explain.select import Selection
from ral.models import Network
from ral.models.info import ModelInfo
from ral.models.inputs import normalised
from ral.wording import RESEARCH_NOTE

# matplotlib colormap: perceptually uniform, and without gray, so distinct from the image.
COLOURS = "plasma"
# Opacity of the heat map at its maximum.
OPACITY = 0.6
# Of the corners of boxes.
DECIMALS = 4
# Images per forward pass; the attention of all layers is kept in memory.
BATCH = 16
JPEG = {"quality": 90, "subsampling": 0}


def write_gallery(
    folder: Path,
    network: Network,
    info: ModelInfo,
    dataset: Dataset,
    selections: list[Selection],
    config: ExplainConfig,
    review: tuple[SuspiciousLabel, ...] | None = None,
) -> None:
    """Write gallery.json and, if images may be shown, image_NNN.jpg (gray) and map_NNN.jpg (with heat map
    overlay); label_review.csv if there is a review.

    File names are numbered, because image ids come from the data and may contain anything.

    Args:
        folder: output folder; exists and is empty.
        network: in eval mode, on the device of the computation.
        info: content of model.json.
        dataset: the prepared data; its boxes, if any, are shown on the images.
        selections: one per finding, in the order of the outputs.
        config: the section explain.
        review: training labels that look wrong; None: not requested.

    Raises:
        UserError: the network does not support the method.
    """
    pictures = _Pictures(folder, network, info, dataset, config) if config.show_images else None
    findings = tuple(_finding(output, selection, pictures) for output, selection in enumerate(selections))
    maps = pictures.heat_maps() if pictures else HeatMaps()
    if review is not None:
        to_table(review).to_csv(folder / "label_review.csv", index=False, lineterminator="\n")
    Gallery(
        notice=RESEARCH_NOTE,
        data="phantom" if info.phantom or dataset.info.phantom else "images",
        images=config.show_images,
        per_kind=config.per_kind,
        findings=findings,
        **({} if review is None else {"review": review}),
        **maps.model_dump(exclude_unset=True),
    ).write(folder / "gallery.json")


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


def _finding(output: int, selection: Selection, pictures: "_Pictures | None") -> GalleryFinding:
    """The entry of a finding, with pictures if there may be any."""
    kinds = [kind for kind in KINDS for _ in selection.images(kind)]
    images = [
        GalleryImage(image_id=image.image_id, logit=round(image.logit, 6), rank=image.rank)
        for kind in KINDS
        for image in selection.images(kind)
    ]
    if pictures:
        images = pictures.add(output, images)
    by_kind = {
        kind: tuple(image for image, own in zip(images, kinds, strict=True) if own == kind) for kind in KINDS
    }
    return GalleryFinding(
        finding=selection.finding,
        positives=selection.positives,
        negatives=selection.negatives,
        unknown=selection.unknown,
        note=selection.note,
        **by_kind,
    )


class _Pictures:
    """Writes the pictures of the gallery, each image once."""

    def __init__(
        self,
        folder: Path,
        network: Network,
        info: ModelInfo,
        dataset: Dataset,
        config: ExplainConfig,
    ) -> None:
        self.folder, self.network, self.info = folder, network, info
        self.dataset, self.longest = dataset, config.thumbnail
        self.labels = dataset.targets()
        self.rows = {name: row for row, name in enumerate(dataset.studies["image_id"])}
        self.device = next(network.parameters()).device
        size = info.size
        blank = torch.zeros(1, 1, size, size, device=self.device)
        self.choice = choose_method(network, config.method, blank, config.layer)
        self.boxes = {} if dataset.boxes is None else _shares(dataset.boxes, size)
        self.names: dict[int, str] = {}
        """Row of the data set -> file name of its picture."""
        self.maps = 0
        """Number of heat maps written."""
        self.positions: tuple[int, int] | None = None
        """Rows and columns of the heat maps."""

    def add(self, output: int, images: list[GalleryImage]) -> list[GalleryImage]:
        """Write the pictures of a finding's images; return the images with their file names and labels."""
        shown = []
        for start in range(0, len(images), BATCH):
            batch = images[start : start + BATCH]
            rows = np.array([self.rows[image.image_id] for image in batch])
            pixels = self.dataset.gather(rows)
            added = [self._image(*one) for one in zip(batch, rows, pixels, strict=True)]
            added = [self._with_boxes(output, image) for image in added]
            shown += added if self.choice.method is None else self._with_maps(output, added, pixels)
        return shown

    def _image(self, image: GalleryImage, row: int, pixels: NDArray[np.uint8]) -> GalleryImage:
        if row not in self.names:
            self.names[row] = f"image_{len(self.names) + 1:03d}.jpg"
            save(self.folder / self.names[row], pixels, self.longest)
        labels = dict(zip(self.dataset.findings, self.labels[row], strict=True))
        return image.model_copy(
            update={
                "image": self.names[row],
                "labels": tuple(name for name, label in labels.items() if label == 1),
                "unknown": tuple(name for name, label in labels.items() if np.isnan(label)),
            }
        )

    def _with_boxes(self, output: int, image: GalleryImage) -> GalleryImage:
        boxes = self.boxes.get((image.image_id, self.dataset.findings[output]))
        return image.model_copy(update={"boxes": boxes}) if boxes else image

    def _with_maps(
        self, output: int, images: list[GalleryImage], pixels: NDArray[np.uint8]
    ) -> list[GalleryImage]:
        inputs = normalised(torch.from_numpy(pixels).to(self.device), self.info)
        coarse = heat_maps(self.network, inputs, output, self.choice)
        self.positions = (coarse.shape[1], coarse.shape[2])
        heat = enlarge(coarse, self.info.size).cpu().numpy()
        shown = []
        for image, picture, heat_map in zip(images, pixels, heat, strict=True):
            self.maps += 1
            name = f"map_{self.maps:03d}.jpg"
            save(self.folder / name, overlay(picture, heat_map), self.longest)
            shown.append(image.model_copy(update={"map": name, "empty_map": not heat_map.any()}))
        return shown

    def heat_maps(self) -> HeatMaps:
        """How the heat maps that were written were made."""
        size = self.info.size
        return HeatMaps(
            method=self.choice.method,
            layer=self.choice.layer,
            reason=self.choice.reason,
            positions=self.positions,
            colours=COLOURS,
            image_size=size,
            picture_size=min(size, self.longest),
        )


def _shares(
    boxes: pd.DataFrame, size: int
) -> dict[tuple[str, str], tuple[tuple[float, float, float, float], ...]]:
    """Image and finding -> its boxes, as shares of the side."""
    found: dict[tuple[str, str], tuple[tuple[float, float, float, float], ...]] = {}
    names = zip(boxes["image_id"], boxes["finding"], strict=True)
    corners = (boxes[["x_min", "y_min", "x_max", "y_max"]] / size).round(DECIMALS)
    for key, box in zip(names, corners.itertuples(index=False, name=None), strict=True):
        found[key] = (*found.get(key, ()), box)
    return found
