"""Scores a stream of images with one or several models: decoding and forward passes in parallel, results in order.

Every forward pass has the same number of images, filled up with empty ones, and runs on one thread of the CPU. So the
result of an image does not depend on the images beside it, and not on the number of threads.
"""

import io
import os
import struct
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ral.data.images.bad_image import BadImage
from ral.data.images.decode import decode_with_note, dicom_start
from ral.errors import UserError
from ral.inference.calibrated import combine
from ral.inference.images import InputImage
from ral.inference.released import ReleasedModel
from ral.inference.score import images_per_pass, score_pixels
from ral.preparation import ImageProfile, Preparation

# Images per forward pass; on a CPU more are not faster, and a single image takes as long as a full pass.
CPU_PASS, GPU_PASS = 16, 64
# A thread takes several passes of small images at once: they take milliseconds, and handing them over costs as much.
TASK_IMAGES, TASK_PIXELS = 64, 64 * 64**2
# Bytes of image files that a thread takes at once, beyond which it starts with fewer images.
TASK_BYTES = 64 << 20
MAX_WORKERS = 16


@dataclass(frozen=True)
class Predicted:
    """Results of some images, in the order of the stream."""

    names: list[str]
    errors: list[str]
    """Why an image has no result; "" if it has one."""
    warnings: list[str]
    """How an image differs from the training images; "" if it does not."""
    views: list[str]
    """PA, AP, LATERAL, …; "" if it is not known."""
    probabilities: NDArray[np.float64]
    """[images, findings]; NaN without a result, or without a calibration map."""
    logits: NDArray[np.float32]
    """Raw [images, findings]; NaN without a result, and for several models, which have no common scale."""


class Labels(NamedTuple):
    """What a table of results needs besides the numbers."""

    findings: tuple[str, ...]
    thresholds: NDArray[np.float64]
    """Of the probabilities [findings]."""
    model: str
    """Name of the model, in every row."""
    notice: str
    """What must be shown with every result, in every row."""


class _Prepared(NamedTuple):
    pixels: np.ndarray | None
    error: str
    view: str
    too_small: bool


class Predictor:
    """Models on a device, ready to score streams of images.

    Args:
        models: with the same findings in the same order.
        device: device of the forward passes.
        flip: whether to average the raw logits of each image and its mirror image.
        workers: threads that decode and, on a CPU, score; None for one per CPU core.

    Raises:
        UserError: the models have different findings.
    """

    def __init__(
        self,
        models: Sequence[ReleasedModel],
        device: torch.device,
        flip: bool = False,
        workers: int | None = None,
    ) -> None:
        first = models[0]
        for model in models[1:]:
            if model.findings != first.findings:
                raise UserError(
                    f"{first.name} and {model.name} have different findings ({', '.join(first.findings)}; "
                    f"{', '.join(model.findings)}), so their probabilities cannot be averaged."
                )
        self.models, self.device, self.flip = models, device, flip
        self.findings = first.findings
        # A container may have fewer cores than the machine.
        cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
        self.workers = workers or min(MAX_WORKERS, cores)
        largest = max(model.preparation.size for model in models)
        default_pass = GPU_PASS if device.type == "cuda" else CPU_PASS
        self.pass_images = min(default_pass, images_per_pass(largest))
        self._task_images = max(self.pass_images, min(TASK_IMAGES, TASK_PIXELS // largest**2))
        self._counts = [self.pass_images] * len(models)  # that fit into memory
        for model in models:
            model.network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._gpu = threading.Lock()
        self.thresholds = combine([model.calibration.thresholds for model in models])

    def labels(self) -> "Labels":
        """What a table of results needs besides the numbers."""
        return Labels(self.findings, self.thresholds, self.name, self.notice)

    @property
    def name(self) -> str:
        """Names of the models, with the options that change results."""
        return " + ".join(model.name for model in self.models) + (", flip" if self.flip else "")

    @property
    def notice(self) -> str:
        """What must be shown with every result."""
        return next((model.notice for model in self.models if model.phantom), self.models[0].notice)

    def stream(self, images: Iterable[InputImage]) -> Iterator[Predicted]:
        """Yield the results of a stream of images, some at a time, in order; memory holds few images.

        Raises:
            UserError: an image needs a decoder that is not installed; memory does not suffice; a prepared image has
                another size than the model's.
        """
        pending: deque[Future[Predicted]] = deque()
        with one_thread(), ThreadPoolExecutor(self.workers, thread_name_prefix="predict") as pool:
            try:
                try:
                    for chunk in self._chunks(images):
                        pending.append(pool.submit(self._predict, chunk))
                        if len(pending) > self.workers + 1:
                            yield pending.popleft().result()
                except UserError:  # of the input: what was read before is kept
                    while pending:
                        yield pending.popleft().result()
                    raise
                while pending:
                    yield pending.popleft().result()
            finally:
                for future in pending:
                    future.cancel()

    def raw_logits(self, model: int, pixels: np.ndarray) -> NDArray[np.float32]:
        """Raw logits of one model for pixels uint8 [images, size, size], in passes of `pass_images`."""
        released = self.models[model]
        tensor = torch.from_numpy(np.ascontiguousarray(pixels))
        parts = [torch.empty((0, len(self.findings)))]
        with torch.no_grad(), self._gpu if self.device.type == "cuda" else nullcontext():
            for start in range(0, len(tensor), self.pass_images):
                part = tensor[start : start + self.pass_images]
                logits = self._pass(model, part, released)
                if self.flip:
                    logits = (logits + self._pass(model, part.flip(-1), released)) / 2
                parts.append(logits.cpu())
        return torch.cat(parts).numpy()

    def _pass(self, model: int, pixels: Tensor, released: ReleasedModel) -> Tensor:
        with exact_math(self.device):
            parts, self._counts[model] = score_pixels(
                released.network, pixels, released.info, self.device, self._counts[model], pad=True
            )
        return torch.cat(parts)

    def _chunks(self, images: Iterable[InputImage]) -> Iterator[list[InputImage]]:
        chunk: list[InputImage] = []
        size = 0
        for image in images:
            chunk.append(image)
            size += len(image.content)
            if len(chunk) == self._task_images or size >= TASK_BYTES:
                yield chunk
                chunk, size = [], 0
        if chunk:
            yield chunk

    def _predict(self, images: list[InputImage]) -> Predicted:
        prepared = {
            preparation: [prepare_image(image, preparation) for image in images]
            for preparation in dict.fromkeys(model.preparation for model in self.models)
        }
        first = prepared[self.models[0].preparation]
        errors = [
            next((item.error for item in each if item.error), "")
            for each in zip(*prepared.values(), strict=True)
        ]
        good = [index for index, error in enumerate(errors) if not error]
        shape = len(images), len(self.findings)
        probabilities, logits = np.full(shape, np.nan), np.full(shape, np.nan, np.float32)
        warnings = [""] * len(images)
        if good:
            raw = []
            for index, model in enumerate(self.models):
                versions = prepared[model.preparation]
                pixels = np.stack([versions[row].pixels for row in good])  # type: ignore[misc]
                raw.append(self.raw_logits(index, pixels))
                if index == 0:
                    for row, text in zip(
                        good, compare(pixels, [first[i] for i in good], model.profile), strict=True
                    ):
                        warnings[row] = text
            probabilities[good] = combine(
                [model.calibration.probabilities(part) for model, part in zip(self.models, raw, strict=True)]
            )
            if len(raw) == 1:
                logits[good] = raw[0]
        views = [image.view or item.view for image, item in zip(images, first, strict=True)]
        return Predicted([image.name for image in images], errors, warnings, views, probabilities, logits)


def prepare_image(image: InputImage, preparation: Preparation) -> _Prepared:
    """Pixels of an image, decoded and resized by the code that prepared the training images.

    Raises:
        UserError: it needs a decoder that is not installed, or is a prepared image of another size.
    """
    size = preparation.size
    if image.error:
        return _Prepared(None, image.error, "", False)
    if image.pixels is not None:
        if image.pixels.shape != (size, size):
            raise UserError(
                f"{image.name} was prepared with {image.pixels.shape[0]} pixels, but the model needs {size}. Prepare "
                f"the images with preprocess.size={size}, or predict the files that they were made of."
            )
        return _Prepared(image.pixels, "", image.view, False)
    try:
        pixels, _ = decode_with_note(image.content, size, image.name, preparation.fit, preparation.range)
        view, shorter = _header(image)
    except BadImage as error:
        return _Prepared(None, f"{error.reason}{f' ({error.detail})' if error.detail else ''}", "", False)
    return _Prepared(pixels, "", view, 0 < shorter < size)


def _header(image: InputImage) -> tuple[str, int]:
    """View and shorter side of an image that was decoded, from its header."""
    content = image.content
    if content.startswith(b"\x89PNG"):
        return "", min(struct.unpack_from(">2L", content, 16))
    start = dicom_start(content)
    if start is not None:
        from ral.data.images.dicom import read_header

        view, rows, columns = read_header(content, start, image.name)
        return view, min(rows, columns)
    with Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as opened:
        return "", min(opened.size)


def compare(pixels: np.ndarray, prepared: Sequence[_Prepared], profile: ImageProfile | None) -> list[str]:
    """How each image differs from the training images, "" if it does not.

    Args:
        pixels: uint8 [images, size, size].
        prepared: the same images, with view and size.
        profile: of the training images; None: only the size is compared.
    """
    texts: list[list[str]] = [
        ["smaller than the input of the model"] if item.too_small else [] for item in prepared
    ]
    if profile is not None:
        flat = pixels.reshape(len(pixels), -1)
        measured = {"brightness": (flat.mean(axis=1), profile.image_mean),
                    "contrast": (flat.std(axis=1), profile.image_deviation)}  # fmt: skip
        for name, (values, (low, high)) in measured.items():
            for text, value in zip(texts, values, strict=True):
                if not low <= value <= high:
                    text.append(f"{name} unlike the training images")
        known = {"PA", "AP", "FRONTAL"} if "FRONTAL" in profile.views else set(profile.views)
        for text, item in zip(texts, prepared, strict=True):
            if item.view and item.view not in known | {"FRONTAL"}:
                text.append(f"view {item.view}, not in the training images")
    return ["; ".join(text) for text in texts]


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread per forward pass, because rounding depends on the number; the workers use the other cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def exact_math(device: torch.device) -> Iterator[None]:
    """On a GPU, float32 without TF32 and deterministic convolutions, as in training; no change on a CPU."""
    if device.type != "cuda":
        yield
        return
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = False
        try:
            yield
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before
