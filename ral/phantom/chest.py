"""Draws a chest without findings: proportions, anatomy in layers, and exposure of the image.

Coordinates run from -1 to 1 over the image: x to the image's right (the patient's left), y downwards.
Brightness is 0 for air and about 1 for bone; angles are in turns. The signs of findings (`signs`) change the
proportions before they are drawn, or paint on the canvas afterwards. All operations give the same result on every
processor (`portable`).
"""

import math
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ral.phantom.portable import Plane, Random, cosine, decay, direction, enlarge, rotation

# Brightness that opaque tissue approaches.
OPAQUE = 0.92

# Height of the hila, from which the vessels branch.
HILUM_Y = -0.02

# Thickness of a soft outline, about two pixels in an image of 96 pixels.
_EDGE = 0.04


@dataclass
class Chest:
    """Proportions of the chest in one image. Pairs are (image left, image right)."""

    wall: float = 0.78
    """Half the width of the thorax at its base."""
    apex: float = -0.76
    """Height of the lung apices."""
    base: list[float] = field(default_factory=lambda: [0.40, 0.45])
    """Height of the tops of the two diaphragm domes."""
    dome: float = 0.2
    """How far the diaphragm falls from its top to the costophrenic angle."""
    heart: float = 0.29
    """Half the width of the heart."""
    mediastinum: float = 0.125
    """Half the width of the mediastinum."""
    air: float = 0.2
    """Brightness of the lungs."""
    vessels: float = 0.3
    """Strength of the vessels near the hila."""
    spacing: float = 0.165
    """Distance between ribs."""
    rib_phase: float = 0.0
    bone: float = 0.1
    """Contrast of ribs and clavicles."""
    shoulders: float = 0.0
    """Height of shoulders and clavicles, relative to the default."""

    def wall_at(self, y: Plane) -> Plane:
        """Distance of the inner chest wall from the midline at height `y`; 0.16 at the apex and above it."""
        reach = np.clip((0.5 - y) / (0.5 - self.apex), 0, 1)
        return 0.16 + (self.wall - 0.16) * np.sqrt(1 - reach * np.sqrt(reach))

    def dome_at(self, t: Plane, side: int) -> Plane:
        """Height of the diaphragm of one side (0 image left, 1 right) at distance `t` of the midline."""
        off = (t - 0.34) / 0.42
        return self.base[side] + self.dome * off * off


def chest_of_patient(rng: Random) -> Chest:
    """Draw the proportions that all images of a patient share."""
    chest = Chest()
    chest.wall *= rng.normal(1, 0.035)
    chest.apex += rng.normal(0, 0.02)
    chest.base = [base + rng.normal(0, 0.02) for base in chest.base]
    chest.dome *= rng.uniform(0.8, 1.2)
    chest.heart *= rng.normal(1, 0.05)
    chest.mediastinum *= rng.normal(1, 0.08)
    chest.spacing *= rng.normal(1, 0.06)
    chest.rib_phase = rng.uniform()
    chest.bone *= rng.uniform(0.6, 1.3)
    chest.vessels *= rng.uniform(0.8, 1.2)
    chest.shoulders = rng.normal(0, 0.025)
    return chest


def breathe(chest: Chest, antero_posterior: bool, rng: Random) -> None:
    """Adapt a patient's chest to one image: depth of breath and projection.

    The AP projection, mostly of lying patients, widens heart and mediastinum and raises the diaphragm.
    """
    breath = rng.normal(0, 0.02)
    if antero_posterior:
        chest.heart *= 1.1
        chest.mediastinum *= 1.15
        breath += 0.05
    chest.base = [base - breath for base in chest.base]
    chest.air += rng.normal(0, 0.012)


class Canvas:
    """An image being drawn: planes of `size` x `size` values that the layers and signs read and paint on."""

    def __init__(self, size: int, rng: Random) -> None:
        """Set up the coordinates: each image is slightly rotated, shifted and scaled."""
        across, down = _grid(size)
        (cos, sin), scale = rotation(rng.normal(0, 0.005)), rng.normal(1.0, 0.025)
        shift_x, shift_y = rng.normal(0, 0.025), rng.normal(0, 0.025)
        cos, sin = cos * scale, sin * scale
        self.size = size
        self.x: Plane = cos * across - sin * down + shift_x
        self.y: Plane = sin * across + cos * down + shift_y
        self.t: Plane = np.abs(self.x)
        """Distance from the midline."""
        self.on_right = self.x > 0
        self.image: Plane = np.zeros((size, size), np.float32)
        self.lung: Plane = self.image
        """1 in the lung fields, 0 outside, between on their outlines."""
        self.inside: Plane = self.image
        """Distance from the chest wall, positive inside the thorax."""
        self.above: Plane = self.image
        """Distance from the diaphragm, positive above it."""
        self.markings: Plane = self.image
        """What the vessels add to the image."""
        self.opacity: Plane | None = None
        """Greatest opacity of the tissue painted since this was set to 0, where the extent of a sign is wanted."""

    def side(self, side: int) -> NDArray[np.bool_]:
        """Mask of half of the image: 0 for the left, 1 for the right."""
        return self.on_right if side else ~self.on_right

    def cover(self, opacity: Plane, brightness: float = OPAQUE) -> None:
        """Blend the image with tissue of the given brightness, by `opacity` (0 to 1) per pixel."""
        self.image += opacity * (brightness - self.image)
        if self.opacity is not None:
            np.maximum(self.opacity, opacity, out=self.opacity)

    def soft_spot(self, x: float, y: float, width: float, height: float) -> Plane:
        """A bell curve around a point, 1 at its center."""
        across, down = (self.x - x) / width, (self.y - y) / height
        return decay(0.5 * (across * across + down * down))

    def disc(self, x: float, y: float, radius: float, squash: float = 1.0) -> Plane:
        """Distance inside an upright ellipse around a point, negative outside."""
        down = (self.y - y) / squash
        return radius - distance(self.x - x, down)

    def line(self, x: float, y: float, angle: float, length: float, width: float) -> Plane:
        """A straight stroke with soft ends, starting at a point; the angle is measured from right to down."""
        cos, sin = rotation(angle)
        across, down = self.x - x, self.y - y
        along, off = cos * across + sin * down, (cos * down - sin * across) / width
        return decay(0.5 * off * off) * edge(along) * edge(length - along)

    def mottle(self, cells: int, rng: Random) -> Plane:
        """Smooth noise of about `cells` x `cells` bumps, standard normal before smoothing."""
        return enlarge(rng.normals(cells, cells), self.size)


def edge(inward: Plane, width: float = _EDGE) -> Plane:
    """0 to 1 where a distance passes through zero, over `width`."""
    ramp = inward * (1 / width)
    ramp += 0.5
    np.maximum(ramp, 0, out=ramp)
    return np.minimum(ramp, 1, out=ramp)


def distance(across: Plane, down: Plane) -> Plane:
    """Length of a step; np.hypot would be several times slower."""
    length: Plane = np.sqrt(across * across + down * down)
    return length


def draw_chest(canvas: Canvas, chest: Chest, rng: Random) -> None:
    """Draw the anatomy, from the skin to the bones, and set the canvas's masks."""
    _draw_body(canvas, chest)
    _draw_lungs(canvas, chest, rng)
    _draw_mediastinum(canvas, chest)
    _draw_bones(canvas, chest)
    # Gastric air bubble below the left diaphragm.
    x, depth, radius = rng.uniform(0.22, 0.42), rng.uniform(0.13, 0.18), rng.uniform(0.05, 0.09)
    if rng.uniform() < 0.5:
        canvas.cover(0.5 * edge(canvas.disc(x, chest.base[1] + depth, radius, 0.6), 0.06), 0.3)


def _draw_body(canvas: Canvas, chest: Chest) -> None:
    """Soft tissue: a torso with sloping shoulders and a neck, denser below the diaphragm."""
    shoulder = np.clip(0.93 - chest.shoulders + canvas.y, 0, 0.4)
    width = 0.27 + (chest.wall - 0.08) / math.sqrt(0.4) * np.sqrt(shoulder)
    canvas.image = 0.03 + 0.5 * edge(width - canvas.t, 0.08)
    canvas.image += 0.17 * edge(canvas.y - 0.5, 0.5) * (canvas.image > 0.3)


def _draw_lungs(canvas: Canvas, chest: Chest, rng: Random) -> None:
    """The two lung fields with their vessels; sets the canvas's masks."""
    canvas.inside = chest.wall_at(canvas.y) - canvas.t
    dome = np.where(canvas.on_right, chest.dome_at(canvas.t, 1), chest.dome_at(canvas.t, 0))
    canvas.above = dome - canvas.y
    field = np.minimum(np.minimum(canvas.inside, canvas.above), canvas.t - 0.06)
    canvas.lung = edge(np.minimum(field, canvas.y - chest.apex))
    # Darker towards the periphery, where the beam crosses more air and less tissue.
    air = chest.air + 0.05 - 0.08 * canvas.t
    canvas.image += canvas.lung * (air - canvas.image)
    # Branching streaks that radiate from the hila.
    across, down = canvas.t - 0.16, canvas.y - HILUM_Y
    far = distance(across, down)
    left, right = rng.uniform(), rng.uniform()
    angle = direction(across + 0.02, down) + np.where(canvas.on_right, np.float32(right), np.float32(left))
    trunk = cosine(7 * angle + 0.48 * far)
    twig = cosine(15 * angle - 0.8 * far)
    streaks = np.maximum(np.where(far < 0.22, trunk, np.maximum(trunk, twig)), 0)
    streaks *= streaks
    hilum = decay(12 * (across * across + 0.5 * down * down))
    fade = decay(2.4 * far)
    canvas.markings = (
        chest.vessels * canvas.lung * (0.7 * streaks * fade * edge(far - 0.07, 0.14) + 0.55 * hilum)
    )
    canvas.image += canvas.markings


def _draw_mediastinum(canvas: Canvas, chest: Chest) -> None:
    """Mediastinum with aortic knob and trachea, and the heart, mostly on the right of the image."""
    width = chest.mediastinum * (1 + 0.25 * canvas.y)
    band = width - np.abs(canvas.x - 0.01)
    knob = canvas.disc(chest.mediastinum + 0.01, -0.3, 0.085)
    solid = edge(np.maximum(np.maximum(band, knob), inside_heart(canvas, chest)), 0.05)
    canvas.image += solid * (0.66 - canvas.image) * (canvas.above > -0.25)
    trachea = edge(0.045 - np.abs(canvas.x - 0.005)) * edge(-0.22 - canvas.y, 0.2)
    canvas.image -= 0.2 * trachea


def inside_heart(canvas: Canvas, chest: Chest) -> Plane:
    """Distance inside the heart, negative outside; wider at the bottom, its axis tilted towards the right."""
    heart_y = chest.base[1] - 0.13
    across = canvas.x - 0.45 * chest.heart - 0.3 * (canvas.y - heart_y)
    # A large heart grows less in height than in width.
    height = 0.27 * (0.65 + 0.35 * chest.heart / 0.29)
    down = (canvas.y - heart_y) * (chest.heart / height)
    return chest.heart - distance(across, down)


def _draw_bones(canvas: Canvas, chest: Chest) -> None:
    """Ribs as curved bands, clavicles, and the spine with its discs."""
    t, y = canvas.t, canvas.y
    thorax = edge(canvas.inside + 0.05, 0.06) * edge(y - chest.apex - 0.02, 0.1)
    turns = 1 / chest.spacing
    off = t - 0.22
    # From behind, the ribs arch up and then fall outwards; in front they fall towards the midline.
    behind = cosine(turns * (y - 0.75 * off * off) + chest.rib_phase)
    front = cosine(0.9 * turns * (y + 0.5 * t) + chest.rib_phase)
    ribs = edge(behind - 0.25, 0.9) * edge(t - 0.1) + 0.6 * edge(front - 0.4, 0.8) * edge(t - 0.3, 0.2)
    # Below the diaphragm they drown in the belly's density.
    canvas.image += chest.bone * ribs * thorax * edge(0.45 - y, 0.7)
    rise = chest.shoulders - 0.52 - 0.12 * cosine(0.557 * t - 0.393)
    clavicle = edge(0.032 - np.abs(y - rise)) * edge(t - 0.1) * edge(0.85 - t)
    canvas.image += 1.5 * chest.bone * clavicle
    discs = 0.03 * cosine(1.3 * turns * y)
    canvas.image += edge(0.08 - t) * (0.06 + discs)


def draw_wires(canvas: Canvas, rng: Random) -> None:
    """What a bedridden patient often has on the image: a tube in the trachea, or the wire of an electrode."""
    tube, wire = rng.uniform(), rng.uniform()
    x, y, angle = rng.uniform(-0.6, 0.6), rng.uniform(-0.5, 0.3), rng.uniform(0, 0.5)
    if tube < 0.4:
        canvas.cover(0.6 * canvas.line(0.0, -1.1, 0.247, 0.9, 0.014))
    if wire < 0.4:
        canvas.cover(0.55 * canvas.line(x, y, angle, 1.2, 0.012))
        canvas.cover(0.8 * edge(canvas.disc(x, y, 0.03)))


def develop(canvas: Canvas, rng: Random) -> NDArray[np.uint8]:
    """Apply exposure and grain, and burn in the word PHANTOM; returns 8-bit gray values."""
    gain, bend, grain = rng.normal(1.02, 0.06), rng.normal(0, 0.14), rng.uniform(0.012, 0.028)
    uneven = canvas.mottle(3, rng) * 0.015
    noise = rng.normals(canvas.size, canvas.size) * grain
    bright = np.clip(canvas.image + uneven, 0, 1.2)
    # Tone curve: lighter (bend above 0) or darker midtones.
    exposed = bright * (1 + bend * (1 - bright)) * gain + noise
    gray = (np.clip(exposed, 0, 1) * 255).astype(np.uint8)
    mark = phantom_mark(canvas.size)
    top, left = mark_corner(canvas.size)
    gray[top : top + mark.shape[0], left : left + mark.shape[1]] = mark
    return gray


@lru_cache(maxsize=4)
def phantom_mark(size: int) -> NDArray[np.uint8]:
    """The word PHANTOM, white on black, for an image of `size`; it stays legible at every size."""
    font = ImageFont.load_default_imagefont()
    left, top, right, bottom = (int(value) for value in font.getbbox("PHANTOM"))
    mark = Image.new("L", (right - left + 2, bottom - top), 0)
    ImageDraw.Draw(mark).text((1 - left, -top), "PHANTOM", fill=255, font=font)
    times = max(1, size // 96)
    return np.asarray(mark.resize((mark.width * times, mark.height * times), Image.Resampling.NEAREST))


def mark_corner(size: int) -> tuple[int, int]:
    """Top row and left column of the mark, centered at the lower edge of the image."""
    height, width = phantom_mark(size).shape
    return size - height, (size - width) // 2


@lru_cache(maxsize=4)
def _grid(size: int) -> tuple[Plane, Plane]:
    """Coordinates of pixel centers from -1 to 1: across (1, size) and down (size, 1)."""
    centers = (np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1
    return centers[None, :], centers[:, None]
