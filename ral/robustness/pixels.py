"""The shifts: functions of packed pixels, uint8 [images, size, size], that depend on no other image of the batch."""

import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from ral.config.robustness import ShiftsConfig

Pixels = NDArray[np.uint8]
Kind = Literal["jpeg", "bits", "blur", "noise", "gamma", "downscale", "rotate", "corners", "flip"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class Shift:
    """A change of the images."""

    kind: Kind
    strength: float | None = None
    """None for a kind without strengths."""

    @property
    def name(self) -> str:
        """Such as jpeg_50."""
        return self.kind if self.strength is None else f"{self.kind}_{self.strength:g}"

    @property
    def label(self) -> str:
        """For people."""
        return LABELS[self.kind].format(self.strength)

    def apply(self, pixels: Pixels, image_ids: Sequence[str], seed: int) -> Pixels:
        """Change images.

        Args:
            pixels: uint8 [images, size, size]; not changed.
            image_ids: of the images; the noise of an image depends on its id and `seed` only.
            seed: of the noise.
        """
        if self.kind == "noise":
            return _noise(pixels, float(self.strength or 0), image_ids, seed)
        return CHANGES[self.kind](pixels, float(self.strength or 0))


LABELS: dict[Kind, str] = {
    "jpeg": "JPEG, quality {:g}",
    "bits": "{:g} bits per pixel",
    "blur": "Blur, {:g} % of side",
    "noise": "Noise, {:g} gray levels",
    "gamma": "Gamma {:g}",
    "downscale": "Resolution / {:g}",
    "rotate": "Rotation by {:g}°",
    "corners": "Corners, {:g} % of side",
    "flip": "Left and right exchanged",
}


def requested(config: ShiftsConfig) -> list[Shift]:
    """The shifts of the parameters, in the order of `KINDS`."""
    shifts = []
    for kind in KINDS:
        strengths = getattr(config, kind)
        if isinstance(strengths, bool):
            shifts += [Shift(kind)] * strengths
        else:
            shifts += [Shift(kind, float(strength)) for strength in strengths]
    return shifts


def _jpeg(pixels: Pixels, quality: float) -> Pixels:
    changed = np.empty_like(pixels)
    for image, out in zip(pixels, changed, strict=True):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=int(quality))
        with Image.open(file) as decoded:
            out[:] = np.asarray(decoded)
    return changed


def _bits(pixels: Pixels, bits: float) -> Pixels:
    kept = np.arange(256) >> (8 - int(bits))
    return _looked_up(pixels, kept * 255 / (2 ** int(bits) - 1))


def _gamma(pixels: Pixels, exponent: float) -> Pixels:
    return _looked_up(pixels, 255 * (np.arange(256) / 255) ** exponent)


def _looked_up(pixels: Pixels, table: NDArray[np.float64]) -> Pixels:
    """Pixels with each gray level replaced by its entry in a table [256]."""
    changed: Pixels = np.rint(table).astype(np.uint8)[pixels]
    return changed


def _blur(pixels: Pixels, percent: float) -> Pixels:
    sigma = percent / 100 * pixels.shape[1]
    return _rounded(gaussian_filter(pixels.astype(np.float32), (0, sigma, sigma), mode="nearest"))


def _noise(pixels: Pixels, deviation: float, image_ids: Sequence[str], seed: int) -> Pixels:
    changed = pixels.astype(np.float32)
    for image, name in zip(changed, image_ids, strict=True):
        digest = hashlib.sha256(name.encode()).digest()[:8]
        generator = np.random.default_rng([seed, int.from_bytes(digest, "little")])
        image += deviation * generator.standard_normal(image.shape, np.float32)
    return _rounded(changed)


def _downscale(pixels: Pixels, factor: float) -> Pixels:
    size = pixels.shape[1]
    small = max(1, round(size / factor))
    if small == size:
        return pixels.copy()

    def change(image: Image.Image) -> Image.Image:
        reduced = image.resize((small, small), Image.Resampling.BOX)
        return reduced.resize((size, size), Image.Resampling.BILINEAR)

    return _each(pixels, change)


def _rotate(pixels: Pixels, degrees: float) -> Pixels:
    return _each(pixels, lambda image: image.rotate(degrees, Image.Resampling.BILINEAR))


def _corners(pixels: Pixels, percent: float) -> Pixels:
    changed = pixels.copy()
    side = round(percent / 100 * pixels.shape[1])
    if side:
        for rows in (slice(side), slice(-side, None)):
            for columns in (slice(side), slice(-side, None)):
                changed[:, rows, columns] = 0
    return changed


def _flip(pixels: Pixels, _: float) -> Pixels:
    return np.ascontiguousarray(pixels[..., ::-1])


def _each(pixels: Pixels, change: Callable[[Image.Image], Image.Image]) -> Pixels:
    """Images changed by Pillow, one by one."""
    return np.stack([np.asarray(change(Image.fromarray(image))) for image in pixels])


def _rounded(values: NDArray[np.float32]) -> Pixels:
    return np.rint(np.clip(values, 0, 255)).astype(np.uint8)


CHANGES: dict[Kind, Callable[[Pixels, float], Pixels]] = {
    "jpeg": _jpeg,
    "bits": _bits,
    "blur": _blur,
    "gamma": _gamma,
    "downscale": _downscale,
    "rotate": _rotate,
    "corners": _corners,
    "flip": _flip,
}
