"""A released model in Python: probabilities, decisions, logits and heat maps of images.

import ral
model = ral.load_model("models")
table = model.predict(["a.png", "b.dcm"])
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ral.errors import UserError
from ral.inference.heat import heat_map
from ral.inference.images import InputImage, png, read_inputs
from ral.inference.predict import open_predictor
from ral.inference.results import schema, to_frame, to_table
from ral.inference.scoring import Predictor, one_thread, prepare_image

ImageInput = str | Path | NDArray[np.uint8] | NDArray[np.uint16] | Image.Image


def load_model(model: str | Path, device: str | None = None) -> "Model":
    """Load a released model. Nothing is unpickled or downloaded; the files of a release or an export are checked
    against hashes.

    Args:
        model: folder of a release, of an export, or of a project after `make run` (or its models/); `champion`; or a
            version.
        device: name of torch's device; None for a GPU if there is one, else the CPU.

    Raises:
        UserError: there is no such model or device, or a file is missing, has changed or is of another model.
    """
    return Model(open_predictor([model], device))


class Model:
    """A released model. Research software, not a medical device.

    Attributes:
        name: version or folder, and the first digits of a hash of weights and calibration.
        findings: names of the outputs, in order.
        size: height and width of a prepared image, in pixels.
        notice: what must be shown with every result.
        thresholds: of the probabilities, by finding; NaN for a finding without calibration.
    """

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor
        self._released = predictor.models[0]
        self.name, self.notice = predictor.name, predictor.notice
        self.findings = predictor.findings
        self.size = self._released.preparation.size
        self.thresholds = pd.Series(self._released.calibration.thresholds, index=list(self.findings))

    def __repr__(self) -> str:
        return f"<ral model {self.name}: {len(self.findings)} findings, {self.size} pixels; {self.notice}>"

    def predict(self, images: ImageInput | Iterable[ImageInput]) -> pd.DataFrame:
        """Probabilities and decisions of images.

        Args:
            images: one or several: paths (also of folders, archives and prepared sets), arrays of gray values (uint8
                or uint16 [height, width]) or RGB (uint8 [height, width, 3]), or images of Pillow.

        Returns:
            A row per image: image (path or number), error (why it has no result), warning (how it differs from the
            training images), view; per finding `…_probability` (calibrated), `…_decision` (at the released
            threshold), `…_logit` (raw: its sigmoid is no probability); model and notice.

        Raises:
            UserError: a path does not exist, an archive is damaged, or an object is no image.
        """
        single = isinstance(images, str | Path | np.ndarray | Image.Image)
        several: Iterable[ImageInput] = [images] if single else images  # type: ignore[assignment, list-item]
        parts = list(self._predictor.stream(_inputs(several)))
        return to_frame(
            to_table(parts, self._predictor.labels()) if parts else schema(self.findings).empty_table()
        )

    def logits(self, images: Tensor) -> Tensor:
        """Raw logits float32 [images, findings], on the CPU; their sigmoid is not a probability.

        Args:
            images: pixels as `pixels` returns them, uint8 [images, size, size].

        Raises:
            UserError: they are of another type or shape.
        """
        if images.dtype != torch.uint8 or images.ndim != 3 or images.shape[1:] != (self.size, self.size):
            raise UserError(
                f"logits takes uint8 [images, {self.size}, {self.size}], but got {images.dtype} "
                f"{list(images.shape)}. model.pixels(image) prepares an image."
            )
        with one_thread():
            return torch.from_numpy(self._predictor.raw_logits(0, images.cpu().numpy()))

    def pixels(self, image: ImageInput) -> NDArray[np.uint8]:
        """The image as the network sees it, uint8 [size, size], prepared as the training images were.

        Raises:
            UserError: it is not an image that can be used.
        """
        prepared = prepare_image(next(_inputs([image])), self._released.preparation)
        if prepared.pixels is None:
            raise UserError(f"The image {prepared.error}.")
        return prepared.pixels

    def explain(self, image: ImageInput, finding: str) -> NDArray[np.float32]:
        """Heat map of a finding: what the network used, not where disease is.

        Grad-CAM, or attention rollout for vision transformers (equal for all findings).

        Args:
            image: as for `predict`.
            finding: one of `findings`.

        Returns:
            float32 [size, size] from 0 to 1; 0 everywhere if nothing raises the logit.

        Raises:
            UserError: no such finding; not an image that can be used; the network has no heat maps of at least 7 × 7
                positions, or is an export to ONNX or torch.export.
        """
        if finding not in self.findings:
            raise UserError(f"There is no finding {finding}. Findings: {', '.join(self.findings)}.")
        return heat_map(self._predictor, self.pixels(image), self.findings.index(finding))


def _inputs(images: Iterable[ImageInput]) -> Iterator[InputImage]:
    """Images in memory are named by their number."""
    for number, image in enumerate(images):
        if isinstance(image, str | Path):
            yield from read_inputs([image])
        elif isinstance(image, np.ndarray | Image.Image):
            yield InputImage(str(number), png(image))
        else:
            raise UserError(
                f"An object of type {type(image).__name__} is no image. Pass paths, arrays of numpy or images of "
                "Pillow."
            )
