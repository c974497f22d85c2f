"""Draws the fourteen findings, and the complete image of a row.

A sign has a severity from 0.45 (subtle) to 1 (obvious), and usually a random side and position. It may change the
proportions of the chest before it is drawn (RESHAPE), paint on the canvas afterwards (PAINT), or both. Each sign has a
separate random generator: adding a finding to an image changes nothing else in it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ral.phantom.boxes import Box, boxes_of
from ral.phantom.chest import (
    HILUM_Y,
    Canvas,
    Chest,
    breathe,
    chest_of_patient,
    develop,
    draw_chest,
    draw_wires,
    edge,
    inside_heart,
)
from ral.phantom.population import FINDINGS, PhantomImage
from ral.phantom.portable import Plane, Random, cosine, decay, rotation


@dataclass
class Sign:
    """What was drawn for one finding on one image."""

    severity: float
    side: int
    """0 the image's left, 1 its right."""
    rng: Random

    @property
    def sign(self) -> int:
        """Sign of the x coordinates on the side."""
        return 1 if self.side else -1


def draw_image(image: PhantomImage, size: int, seed: int) -> NDArray[np.uint8]:
    """Draw the image of a row: `size` x `size` 8-bit gray values that depend only on the arguments."""
    return draw_with_boxes(image, size, seed)[0]


def draw_with_boxes(
    image: PhantomImage, size: int, seed: int
) -> tuple[NDArray[np.uint8], dict[str, list[Box]]]:
    """Draw the image of a row, and say where the sign of each finding is.

    The boxes are around what a sign paints; of Cardiomegaly around the heart and of Emphysema around the lungs, which
    they reshape.
    """
    rng = Random(seed, image.patient, 1 + image.follow_up)
    chest = chest_of_patient(Random(seed, image.patient))
    breathe(chest, image.view == "AP", rng)
    signs = {name: _sign(image, name, seed) for name in image.findings}
    for name, sign in signs.items():
        if name in RESHAPE:
            RESHAPE[name](chest, sign)
    canvas = Canvas(size, rng)
    draw_chest(canvas, chest, rng)
    boxes = {}
    for name, sign in signs.items():
        canvas.opacity = np.zeros(canvas.image.shape, np.float32)
        if name in PAINT:
            PAINT[name](canvas, chest, sign)
        extent = EXTENT[name](canvas, chest) if name in EXTENT else canvas.opacity
        boxes[name] = boxes_of(extent)
    canvas.opacity = None
    if image.view == "AP":
        draw_wires(canvas, rng)
    return develop(canvas, rng), boxes


def _sign(image: PhantomImage, name: str, seed: int) -> Sign:
    rng = Random(seed, image.patient, 1 + image.follow_up, 1 + FINDINGS.index(name))
    return Sign(severity=rng.uniform(0.45, 1), side=rng.below(2), rng=rng)


def _widen_heart(chest: Chest, sign: Sign) -> None:
    """Cardiomegaly: the heart takes more than half of the thorax."""
    chest.heart *= 1.2 + 0.4 * sign.severity


def _inflate(chest: Chest, sign: Sign) -> None:
    """Emphysema: long dark lungs with few vessels, a flat low diaphragm, a narrow heart."""
    chest.base = [base + 0.05 + 0.1 * sign.severity for base in chest.base]
    chest.dome *= 0.5 - 0.4 * sign.severity
    chest.heart *= 0.88 - 0.12 * sign.severity
    chest.air -= 0.03 + 0.06 * sign.severity
    chest.vessels *= 0.8 - 0.5 * sign.severity


def _collapse(chest: Chest, sign: Sign) -> None:
    """Atelectasis: the lost volume pulls one diaphragm up."""
    chest.base[sign.side] -= 0.05 + 0.1 * sign.severity


def _shrink(chest: Chest, sign: Sign) -> None:
    """Fibrosis: stiff lungs are a little small."""
    chest.base = [base - 0.04 * sign.severity for base in chest.base]


def _paint_bullae(canvas: Canvas, chest: Chest, sign: Sign) -> None:
    """Emphysema: a thin-walled bubble of air in an upper lobe."""
    radius = 0.07 + 0.06 * sign.rng.uniform()
    inside = canvas.disc(sign.sign * 0.38, sign.rng.uniform(-0.5, -0.3), radius)
    canvas.cover(0.6 * sign.severity * edge(inside) * canvas.lung, 0.03)
    canvas.cover(0.3 * sign.severity * _ridge(inside, 0.02) * canvas.lung)


def _paint_plates(canvas: Canvas, chest: Chest, sign: Sign) -> None:
    """Atelectasis: plate-like bands across the base of the raised side."""
    for number in range(2 if sign.severity < 0.7 else 3):
        x = sign.sign * sign.rng.uniform(0.2, 0.3)
        y = chest.base[sign.side] - 0.08 - 0.13 * number - sign.rng.uniform(0, 0.04)
        tilt = sign.rng.uniform(-0.048, 0.024)
        angle = tilt if sign.side else 0.5 - tilt
        stroke = canvas.line(x, y, angle, sign.rng.uniform(0.3, 0.42), 0.022)
        canvas.cover((0.2 + 0.4 * sign.severity) * stroke * canvas.lung)


def _paint_consolidation(canvas: Canvas, chest: Chest, sign: Sign) -> None:
    """Consolidation: a lobe turns dense up to its fissure, with dark branches of air-filled bronchi."""
    upper = sign.rng.uniform() < 0.5
    fissure = sign.rng.uniform(-0.14, -0.04) if upper else sign.rng.uniform(0.0, 0.1)
    slope = sign.rng.uniform(-0.15, 0.25)
    below = canvas.y - fissure - slope * (canvas.t - 0.4)
    depth = -below if upper else below
    extent = sign.rng.uniform(0.3, 0.4)
    lobe = edge(depth) * edge(extent - depth, 0.2) * canvas.lung * canvas.side(sign.side)
    for _ in range(3):
        angle = sign.rng.uniform(0.024, 0.135) * (-1 if upper else 1)
        angle = angle if sign.side else 0.5 - angle
        y = fissure + (-0.04 if upper else 0.04)
        lobe = lobe * (1 - 0.6 * canvas.line(sign.sign * 0.2, y, angle, 0.45, 0.02))
    canvas.cover((0.3 + 0.4 * sign.severity) * lobe, 0.85)


def _paint_edema(canvas: Canvas, chest: Chest, sign: Sign) -> None:
    """Edema: haze like a bat's wings around both hila, and short Kerley lines at the lower lateral walls."""
    wings = canvas.soft_spot(-0.3, HILUM_Y + 0.05, 0.17, 0.24) + canvas.soft_spot(
        0.3, HILUM_Y + 0.05, 0.17, 0.24
    )
    canvas.cover((0.2 + 0.4 * sign.severity) * wings * canvas.lung)
    zone = edge(canvas.inside - 0.02) * edge(0.17 - canvas.inside) * edge(canvas.y - 0.1, 0.1)
    lines = edge(cosine(1 / 0.09 * canvas.y) - 0.2, 1.0)
    canvas.cover((0.15 + 0.25 * sign.severity) * lines * zone * canvas.lung)


def _paint_effusion(canvas: Canvas, chest: Chest, sign: Sign) -> None:
    """Effusion: fluid fills the base and climbs the lateral wall in a meniscus."""
    sides = (0, 1) if sign.rng.uniform() < 0.2 else (sign.side,)
    height = 0.02 + 0.33 * sign.severity
    out = canvas.t / chest.wall
    climb = out * out * out
    for side in sides:
        level = chest.base[side] + 0.04 - height * (0.35 + 0.9 * climb)
        # Extends beyond the soft outline of the lung, which would otherwise remain as a dark line around the fluid.
        pleura = edge(np.minimum(canvas.inside, canvas.above) + 0.04)
        fluid = edge(canvas.y - level, 0.06) * pleura * canvas.side(side)
        canvas.cover(0.9 * fluid, 0.7)


def _paint_fibrosis(canvas: Canvas, chest: Chest, sign: Sign) -> None:
    """Fibrosis: a net of fine lines over both bases."""
    warp = 0.24 * canvas.mottle(7, sign.rng)
    rising = np.abs(cosine((canvas.x + canvas.y) / 0.3 + warp))
    falling = np.abs(cosine((canvas.x - canvas.y) / 0.3 - warp))
    net = edge(0.3 - np.minimum(rising, falling), 0.4)
    zone = edge(canvas.y - 0.02, 0.3) * (1 - 0.5 * edge(canvas.inside - 0.35, 0.3))
    canvas.cover((0.15 + 0.4 * sign.severity) * net * zone * canvas.lung)


def _paint_hernia(canvas: Canvas, chest: Chest, sign: Sign) -> None:
    """Hernia: a round shadow behind the heart, the stomach, half full of fluid below air."""
    radius = 0.12 + 0.08 * sign.severity
    x, y = sign.rng.uniform(-0.02, 0.16), chest.base[1] - 0.06 - 0.6 * radius
    inside = canvas.disc(x, y, radius)
    fluid = edge(canvas.y - y - sign.rng.uniform(-0.03, 0.03), 0.02)
    canvas.cover(0.8 * edge(inside) * fluid, 0.8)
    canvas.cover((0.4 + 0.3 * sign.severity) * edge(inside) * (1 - fluid), 0.25)
    canvas.cover(0.35 * _ridge(inside, 0.02))


def _paint_infiltration(canvas: Canvas, chest: Chest, sign: Sign) -> None:
    """Infiltration: one or two wide patchy areas without an edge."""
    patches = np.clip(0.65 + 0.75 * canvas.mottle(12, sign.rng), 0, 1.3)
    for number in range(1 + sign.rng.below(2)):
        x = (sign.sign if number == 0 else -sign.sign) * sign.rng.uniform(0.36, 0.46)
        spot = canvas.soft_spot(x, sign.rng.uniform(-0.25, 0.25), 0.2, 0.22)
        canvas.cover((0.2 + 0.4 * sign.severity) * spot * patches * canvas.lung, 0.8)


def _paint_mass(canvas: Canvas, chest: Chest, sign: Sign) -> None:
    """Mass: a large dense round shadow with a lobed, sharp outline."""
    x, y = _position(canvas, chest, sign)
    radius = 0.1 + 0.08 * sign.severity
    lobes = [canvas.disc(x, y, radius)]
    for _ in range(2):
        cos, sin = rotation(sign.rng.uniform())
        lobes.append(canvas.disc(x + 0.6 * radius * cos, y + 0.6 * radius * sin, 0.65 * radius))
    inside = np.maximum(np.maximum(lobes[0], lobes[1]), lobes[2])
    canvas.cover((0.3 + 0.35 * sign.severity) * edge(inside, 0.05) * edge(canvas.inside))


def _paint_nodules(canvas: Canvas, chest: Chest, sign: Sign) -> None:
    """Nodule: one to three small round spots."""
    for _ in range(1 + sign.rng.below(3)):
        x, y = _position(canvas, chest, sign)
        spot = edge(canvas.disc(x, y, sign.rng.uniform(0.04, 0.06)))
        canvas.cover((0.3 + 0.45 * sign.severity) * spot)
        sign.side = sign.rng.below(2)


def _paint_pleural_thickening(canvas: Canvas, chest: Chest, sign: Sign) -> None:
    """Pleural thickening: a bright, uneven rim along the lateral wall of a lung."""
    width = 0.04 + 0.06 * sign.severity
    uneven = 1 + 0.3 * cosine(2.23 * canvas.y + sign.rng.uniform())
    top = sign.rng.uniform(-0.5, -0.3)
    bottom = top + sign.rng.uniform(0.45, 0.7)
    span = edge(canvas.y - top, 0.1) * edge(bottom - canvas.y, 0.1)
    rim = edge(width * uneven - canvas.inside) * edge(canvas.inside) * span * canvas.side(sign.side)
    canvas.cover((0.5 + 0.35 * sign.severity) * rim)


def _paint_pneumonia(canvas: Canvas, chest: Chest, sign: Sign) -> None:
    """Pneumonia: one round, fuzzy, mottled focus."""
    x, y = sign.sign * sign.rng.uniform(0.38, 0.48), sign.rng.uniform(-0.25, 0.3)
    mottled = np.clip(0.8 + 0.35 * canvas.mottle(40, sign.rng), 0, 1.3)
    focus = edge(canvas.disc(x, y, 0.15 + 0.04 * sign.severity), 0.18)
    canvas.cover((0.3 + 0.35 * sign.severity) * focus * mottled * canvas.lung)


def _paint_pneumothorax(canvas: Canvas, chest: Chest, sign: Sign) -> None:
    """Pneumothorax: air without vessels along the apex and the lateral wall, bounded by the thin pleura."""
    gap = 0.04 + 0.14 * sign.severity
    wall = chest.wall_at(canvas.y - gap) - gap * np.clip(0.7 - canvas.y, 0, 1)
    collapsed = np.minimum(wall - canvas.t, canvas.y - chest.apex - gap)
    lung = canvas.lung * canvas.side(sign.side)
    outside = edge(-collapsed) * lung
    canvas.image -= outside * canvas.markings
    canvas.cover((0.3 + 0.25 * sign.severity) * outside, 0.05)
    canvas.cover(0.12 * edge(collapsed) * lung, 0.7)
    canvas.cover((0.35 + 0.3 * sign.severity) * _ridge(collapsed, 0.018) * lung)


def _position(canvas: Canvas, chest: Chest, sign: Sign) -> tuple[float, float]:
    """Draw a point in the lung of the sign, away from its borders."""
    y = sign.rng.uniform(-0.45, 0.25)
    wall = float(chest.wall_at(np.full(1, y, np.float32))[0])
    return sign.sign * sign.rng.uniform(0.27, wall - 0.14), y


def _ridge(off: Plane, width: float) -> Plane:
    """A soft line where a distance passes through zero."""
    return decay(0.5 / (width * width) * off * off)


RESHAPE: dict[str, Callable[[Chest, Sign], None]] = {
    "Atelectasis": _collapse,
    "Cardiomegaly": _widen_heart,
    "Emphysema": _inflate,
    "Fibrosis": _shrink,
}
PAINT: dict[str, Callable[[Canvas, Chest, Sign], None]] = {
    "Atelectasis": _paint_plates,
    "Consolidation": _paint_consolidation,
    "Edema": _paint_edema,
    "Effusion": _paint_effusion,
    "Emphysema": _paint_bullae,
    "Fibrosis": _paint_fibrosis,
    "Hernia": _paint_hernia,
    "Infiltration": _paint_infiltration,
    "Mass": _paint_mass,
    "Nodule": _paint_nodules,
    "Pleural_Thickening": _paint_pleural_thickening,
    "Pneumonia": _paint_pneumonia,
    "Pneumothorax": _paint_pneumothorax,
}
# Where a sign is that is not, or not only, painted.
EXTENT: dict[str, Callable[[Canvas, Chest], Plane]] = {
    "Cardiomegaly": lambda canvas, chest: edge(inside_heart(canvas, chest)),
    "Emphysema": lambda canvas, chest: canvas.lung,
}
