"""Padding instead of stretching: the source images as preprocess would have padded them, or why there are none."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from PIL import Image
from robustness_inputs import SIZE

from ral.config.base import load
from ral.config.data import DataConfig, PreprocessConfig, PreprocessParams
from ral.config.environment import Environment, load_environment
from ral.data.images.locate import list_images
from ral.data.images.resize import to_square
from ral.errors import UserError
from ral.robustness.padding import padded, padded_pixels, unavailable
from ral.robustness.shifts import audit_shifts
from ral.robustness.subject import Subject

COLUMNS = ["image_id", "path", "member", "offset", "hash"]


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    """State in the test's folder, images in raw/."""
    return load_environment(
        tmp_path, {"RAL_STATE_DIR": str(tmp_path / "state"), "RAL_DATA_ROOT": str(tmp_path / "raw")}
    )


def configs() -> tuple[DataConfig, PreprocessConfig]:
    """As shipped, for images of the size of the tests."""
    params = load(ROOT / "params.yaml", PreprocessParams)
    return params.data, params.preprocess.model_copy(update={"size": SIZE})


def write_sources(subject: Subject, root: Path, shape: tuple[int, int]) -> dict[str, np.ndarray]:
    """Source images of the test images and of another one, as PNG files of a shape; those of the shards if it is theirs."""
    (root / "images").mkdir(parents=True)
    own = subject.dataset.gather(subject.rows)
    rng = np.random.default_rng(0)
    pixels = {
        str(name): image if shape == image.shape else rng.integers(0, 256, shape, dtype=np.uint8)
        for name, image in zip(subject.test["image_id"], own, strict=True)
    }
    pixels["other"] = np.zeros(shape, np.uint8)
    for name, image in pixels.items():
        Image.fromarray(image).save(root / f"images/{name}.png")
    return pixels


def listed(root: Path) -> pd.DataFrame:
    """The source images as the step validate lists them, under the ids of the test."""
    images, _ = list_images(root, lambda _: None)
    return images.assign(image_id=images["image_id"].str.removesuffix(".png"))[COLUMNS]


def test_pixels_are_those_of_preprocess_in_the_order_asked_for(
    subject: Subject, environment: Environment, tmp_path: Path
) -> None:
    sources = write_sources(subject, tmp_path / "raw", (20, 40))
    ids = subject.test["image_id"].tolist()[::-1]
    (tmp_path / "temporary").mkdir()
    pixels = padded_pixels(*configs(), listed(tmp_path / "raw"), ids, tmp_path / "temporary", environment)
    assert pixels.shape == (len(ids), SIZE, SIZE)
    for name, image in zip(ids, pixels, strict=True):
        assert np.array_equal(image, to_square(sources[name], 0, 255, SIZE, "pad")), name
    assert not pixels[:, : SIZE // 4].any()


def test_padded_images_are_scored(subject: Subject, environment: Environment, tmp_path: Path) -> None:
    write_sources(subject, tmp_path / "raw", (20, 40))
    info, change = padded(subject, *configs(), listed(tmp_path / "raw"), tmp_path, environment)
    assert info.not_available is None
    shifts, logits = audit_shifts(subject, [], 0, [(info, change)])
    assert shifts.row("pad", "macro", "macro", "ap").findings == 2
    assert not np.array_equal(logits["pad"], logits[""])
    assert not list(tmp_path.glob("tmp*")), "temporary files are left"


def test_why_there_is_no_padding(subject: Subject, environment: Environment, tmp_path: Path) -> None:
    data, config = configs()
    write_sources(subject, tmp_path / "raw", (SIZE, SIZE))
    images = listed(tmp_path / "raw")
    info, change = padded(subject, data, config, images, tmp_path, environment)
    assert change is None
    assert info.not_available == "all test images are square"
    shifts, logits = audit_shifts(subject, [], 0, [(info, change)])
    assert (shifts.rows, list(logits)) == ((), [""])
    # The two reasons that need no source image.
    padded_before = config.model_copy(update={"fit": "pad"})
    assert "preprocess.fit pad" in str(unavailable(subject.dataset.info, padded_before))
    inverted = subject.dataset.info.model_copy(update={"inverted": 3})
    assert unavailable(inverted, config) is None
    assert "not recorded which" in str(
        unavailable(inverted, config.model_copy(update={"monochrome1": "invert"}))
    )


def test_missing_sources_are_named_with_the_remedy(
    subject: Subject, environment: Environment, tmp_path: Path
) -> None:
    data, config = configs()
    nothing = pd.DataFrame(columns=COLUMNS)
    with pytest.raises(UserError, match=r"raw does not exist.*robustness.shifts.pad: false"):
        padded(subject, data, config, nothing, tmp_path, environment)
    write_sources(subject, tmp_path / "raw", (SIZE, SIZE))
    with pytest.raises(UserError, match="1 of 80 test images are not among the source images"):
        padded(subject, data, config, listed(tmp_path / "raw").iloc[1:], tmp_path, environment)
