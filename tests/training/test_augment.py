"""Augmentation: the drawn maps by their formulas, and what a map does to an image."""

import math
import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ral.config.train import AugmentConfig
from ral.models.inputs import normalised
from ral.training.augment import CPU_PIXELS, augmented, draw_transforms, transform


def config(**changes: float) -> AugmentConfig:
    """No augmentation but what is named."""
    return AugmentConfig.model_validate({"flip": 0.0, "rotate": 0.0, "shift": 0.0, "zoom": 0.0} | changes)


def maps(rows: int, seed: int = 0, **changes: float) -> Tensor:
    return draw_transforms(rows, config(**changes), torch.Generator().manual_seed(seed))


def one_map(matrix: Any) -> Tensor:
    """A single map [1, 2, 3]."""
    return torch.tensor([matrix], dtype=torch.float32)


IMAGES = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(5))


def test_without_ranges_an_image_stays_as_it_is() -> None:
    drawn = maps(9)
    assert drawn.dtype == torch.float32
    assert torch.equal(drawn, torch.tensor([[1.0, 0, 0], [0, 1, 0]]).expand(9, 2, 3))
    torch.testing.assert_close(transform(IMAGES, drawn[:1]), IMAGES, rtol=0, atol=1e-6)


def test_the_seed_decides_and_an_image_does_not_depend_on_those_after_it() -> None:
    everything = {"flip": 0.5, "rotate": 10.0, "shift": 0.1, "zoom": 0.2}
    first = maps(50, **everything)
    assert torch.equal(first, maps(50, **everything))
    assert torch.equal(first[:20], maps(20, **everything))
    assert not torch.equal(first, maps(50, seed=1, **everything))
    assert len(set(map(tuple, first.flatten(1).tolist()))) == 50


def test_the_generator_moves_on() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (draw_transforms(4, config(rotate=10.0), generator) for _ in range(2))
    assert not torch.equal(first, second)


def test_a_flip_is_drawn_as_often_as_its_probability_says() -> None:
    for probability in (0.0, 0.25, 1.0):
        mirrored = maps(4000, flip=probability)[:, 0, 0] == -1
        # Four standard errors.
        assert mirrored.float().mean().item() == pytest.approx(probability, abs=0.028)
    plain = maps(4000, flip=0.25)
    assert set(plain[:, 0, 0].tolist()) == {-1.0, 1.0}
    assert torch.equal(plain[:, 1], torch.tensor([0.0, 1.0, 0.0]).expand(4000, 3))  # never upside down


def test_a_rotation_is_uniform_between_its_limits() -> None:
    drawn = maps(4000, rotate=30.0)
    angles = torch.rad2deg(torch.atan2(drawn[:, 1, 0], drawn[:, 0, 0]))
    expected = torch.stack([torch.cos(angles.deg2rad()), -torch.sin(angles.deg2rad())], 1)
    torch.testing.assert_close(drawn[:, 0, :2], expected)
    torch.testing.assert_close(torch.linalg.det(drawn[:, :, :2]), torch.ones(4000))  # no change of scale
    assert -30 <= angles.min() < -29.5
    assert 29.5 < angles.max() <= 30
    assert angles.mean().item() == pytest.approx(0, abs=4 * 60 / math.sqrt(12 * 4000))
    assert angles.std().item() == pytest.approx(60 / math.sqrt(12), rel=0.05)


def test_a_zoom_scales_both_axes_alike() -> None:
    drawn = maps(4000, zoom=0.2)
    scale = drawn[:, 0, 0]
    assert torch.equal(scale, drawn[:, 1, 1])
    assert not drawn[:, 0, 1].any()
    assert not drawn[:, 1, 0].any()
    assert 0.8 <= scale.min() < 0.805
    assert 1.195 < scale.max() <= 1.2


def test_a_shift_is_a_fraction_of_the_side_on_each_axis_by_itself() -> None:
    drawn = maps(4000, shift=0.1)
    shifts = drawn[:, :, 2] / 2  # affine_grid counts two units per side
    assert torch.equal(drawn[:, :, :2], torch.eye(2).expand(4000, 2, 2))
    assert -0.1 <= shifts.min() < -0.099
    assert 0.099 < shifts.max() <= 0.1
    assert abs(torch.corrcoef(shifts.T)[0, 1].item()) < 0.07


def test_each_transform_is_drawn_by_itself() -> None:
    drawn = maps(4000, flip=0.5, rotate=30.0, shift=0.1, zoom=0.2)
    mirror = torch.sign(torch.linalg.det(drawn[:, :, :2]))
    angle = torch.atan2(-drawn[:, 0, 1], drawn[:, 1, 1])
    scale = torch.linalg.norm(drawn[:, :, 1], dim=1)
    correlations = torch.corrcoef(torch.stack([mirror, angle, scale, drawn[:, 0, 2], drawn[:, 1, 2]]))
    assert (correlations - torch.eye(5)).abs().max() < 0.07


def test_a_flip_mirrors_left_and_right() -> None:
    (mirror,) = maps(1, flip=1.0)
    torch.testing.assert_close(transform(IMAGES, mirror[None]), IMAGES.flip(-1), rtol=0, atol=1e-6)
    twice = transform(transform(IMAGES, mirror[None]), mirror[None])
    torch.testing.assert_close(twice, IMAGES, rtol=0, atol=1e-6)


def test_quarter_turns_move_pixels_without_blur() -> None:
    turn = one_map([[0, -1, 0], [1, 0, 0]])
    torch.testing.assert_close(transform(IMAGES, turn), torch.rot90(IMAGES, 1, (-2, -1)), rtol=0, atol=1e-5)
    turned = IMAGES
    for _ in range(4):
        turned = transform(turned, turn)
    torch.testing.assert_close(turned, IMAGES, rtol=0, atol=1e-5)


def test_a_shift_of_whole_pixels_moves_them_and_repeats_the_border() -> None:
    # By 3 of 16 pixels: 2 units over 16 pixels are 1/8 unit a pixel.
    moved = transform(IMAGES, one_map([[1, 0, 3 / 8], [0, 1, 0]]))
    torch.testing.assert_close(moved[..., :-3], IMAGES[..., 3:], rtol=0, atol=1e-5)
    torch.testing.assert_close(moved[..., -3:], IMAGES[..., -1:].expand(1, 1, 16, 3), rtol=0, atol=1e-5)


def test_each_image_has_its_own_map_and_none_acts_on_another() -> None:
    images = torch.rand(6, 1, 12, 12, generator=torch.Generator().manual_seed(1))
    drawn = maps(6, flip=0.5, rotate=20.0, shift=0.1, zoom=0.1)
    together = transform(images, drawn)
    for index in range(6):
        one = slice(index, index + 1)
        torch.testing.assert_close(transform(images[one], drawn[one]), together[one], rtol=0, atol=1e-6)


def test_values_stay_within_those_of_the_image() -> None:
    """Bilinear with a repeated border: nothing darker or brighter than the image appears, and gray stays gray."""
    images = torch.rand(64, 1, 10, 10, generator=torch.Generator().manual_seed(2))
    drawn = maps(64, flip=0.5, rotate=180.0, shift=0.5, zoom=0.9)
    changed = transform(images, drawn)
    lowest, highest = images.amin((1, 2, 3)), images.amax((1, 2, 3))
    assert (changed.amin((1, 2, 3)) >= lowest - 1e-6).all()
    assert (changed.amax((1, 2, 3)) <= highest + 1e-6).all()
    gray = torch.full((64, 1, 10, 10), 0.375)
    torch.testing.assert_close(transform(gray, drawn), gray, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(10, 10), (9, 9), (1, 1)])
def test_the_grid_is_that_of_affine_grid(size: tuple[int, int]) -> None:
    images = torch.rand(5, 1, *size, generator=torch.Generator().manual_seed(3))
    drawn = maps(5, flip=0.5, rotate=30.0, shift=0.2, zoom=0.3)
    grid = F.affine_grid(drawn, list(images.shape), align_corners=False)
    expected = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    torch.testing.assert_close(transform(images, drawn), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("rows", [1, 31, 32, 33, 70])
def test_a_few_images_at_a_time_have_the_same_bits_as_all_at_once(rows: int) -> None:
    assert CPU_PIXELS // 128**2 == 32
    pixels = torch.randint(
        0, 256, (rows, 128, 128), dtype=torch.uint8, generator=torch.Generator().manual_seed(4)
    )
    drawn = maps(rows, flip=0.5, rotate=30.0, shift=0.2, zoom=0.3)
    statistics = SimpleNamespace(pixel_mean=120.5, pixel_deviation=61.25)
    assert torch.equal(augmented(pixels, drawn, statistics), transform(normalised(pixels, statistics), drawn))


@pytest.mark.skipif(sys.platform != "linux", reason="counts the threads in /proc")
def test_drawing_in_a_thread_starts_no_threads_that_would_compete_with_the_training() -> None:
    script = """
import os, threading, torch
from ral.config.train import AugmentConfig
from ral.training.augment import draw_transforms
torch.set_num_threads(2)
config, tasks = AugmentConfig(flip=0.5, rotate=8.0, shift=0.06, zoom=0.1), []
def draw():
    for _ in range(2):
        tasks.append(len(os.listdir("/proc/self/task")))
        draw_transforms(128, config, torch.Generator().manual_seed(0))
thread = threading.Thread(target=draw)
thread.start()
thread.join()
print(tasks[1] - tasks[0])
"""
    environment = os.environ | {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.stdout == "0\n", done.stdout + done.stderr
