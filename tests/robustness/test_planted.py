"""Planted shortcuts: a network is trained on images whose file type, or marker, goes with a finding. The audit says so."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from trainings import BATCH_NORM, train

from ral.config.dask import DaskTarget
from ral.config.data import DataConfig, PreprocessConfig, PreprocessParams, SplitConfig, TableConfig
from ral.config.evaluate import EvaluateConfig
from ral.config.robustness import ProbesConfig
from ral.data.dataset import open_dataset
from ral.data.images.locate import list_images
from ral.data.prepare import prepare
from ral.evaluation.calibration_io import SavedCalibration
from ral.evaluation.rows import read_studies
from ral.models.load import load_network
from ral.robustness import subject as subjects
from ral.robustness.contents import Probes
from ral.robustness.pixels import Shift
from ral.robustness.probes import audit_probes
from ral.robustness.shifts import audit_shifts
from ral.robustness.subject import Subject

pytestmark = pytest.mark.long  # it trains

# Nodule goes with JPEG files and Mass with a marker on the images of view AP; Effusion with neither.
FINDINGS = ["Nodule", "Mass", "Effusion"]
IMAGES, SIZE = 1200, 32
# Share of the positives and of the negatives that have the planted property.
PLANTED = (0.85, 0.15)


def write_images(folder: Path) -> None:
    """Noise around a gray disc, brighter for Effusion; the other findings have no sign but the planted one."""
    rng = np.random.default_rng(0)
    labels = rng.random((IMAGES, 3)) < 0.3
    jpeg, marked = (rng.random(IMAGES) < np.where(labels[:, column], *PLANTED) for column in (0, 1))
    (folder / "images").mkdir()
    names = [f"images/image{row:04}.{'jpg' if jpeg[row] else 'png'}" for row in range(IMAGES)]
    radius = np.hypot(*np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j])
    for row, name in enumerate(names):
        pixels = 90 + 60 * (radius < 0.8) + rng.normal(0, 20, (SIZE, SIZE)) + 10 * labels[row, 2]
        if marked[row]:
            pixels[1:6, 1:6] = 250
        image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        image.save(folder / name, **({"quality": 20} if jpeg[row] else {}))
    table = pd.DataFrame(labels.astype(int), columns=FINDINGS)
    table["image_id"] = [Path(name).name for name in names]
    table["patient_id"] = [f"p{row // 2}" for row in range(IMAGES)]
    table["view"] = np.where(marked, "AP", "PA")
    table["sex"] = rng.permutation(np.repeat(["F", "M"], IMAGES // 2))
    table.to_csv(folder / "table.csv", index=False)


def prepare_images(images: Path, folder: Path) -> Path:
    """Prepare the images, at the size that they have."""
    columns = TableConfig(view="view", sex="sex", findings={name: name for name in FINDINGS})
    data = DataConfig(
        source="table", root=str(images), table=columns, missing_images="fail", views=["PA", "AP"]
    )
    listed, _ = list_images(images, lambda _: None)
    params = PreprocessParams(
        data=data,
        split=SplitConfig(method="hash", val=0.15, test=0.4, seed=0),
        preprocess=PreprocessConfig(size=SIZE, shard_images=300),
    )
    folder.mkdir()
    prepare(params, listed, folder, DaskTarget(workers=1), lambda _: None)
    return folder


def as_subject(prepared: Path, models: Path, config: EvaluateConfig) -> Subject:
    """The subject of an audit of a training."""
    network, info = load_network(models)
    uncalibrated = SavedCalibration.model_validate(
        {"format": 1, "rule": "max_f1", "data": "images", "version": "0", "findings": dict.fromkeys(sorted(FINDINGS))}
    )  # fmt: skip
    studies = read_studies(prepared)
    return subjects.prepare(network, info, open_dataset(prepared), studies, uncalibrated, config)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory, config: EvaluateConfig) -> Subject:
    """A network that was trained on the planted images."""
    folder = tmp_path_factory.mktemp("planted")
    (folder / "images").mkdir()
    write_images(folder / "images")
    prepared = prepare_images(folder / "images", folder / "prepared")
    still = {"flip": 0.0, "rotate": 0.0, "shift": 0.0, "zoom": 0.0}
    models = train(
        prepared, folder / "out", model=BATCH_NORM, loss="bce", epochs=8, learning_rate=3e-3, augment=still
    )
    return as_subject(prepared, models, config)


@pytest.fixture(scope="module")
def probes(planted: Subject) -> Probes:
    return audit_probes(planted, planted.score(None), ProbesConfig(), 0)


@pytest.mark.parametrize("attribute", ["file_type", "view"])
def test_the_probe_tells_the_planted_property(probes: Probes, attribute: str) -> None:
    areas = {row.attribute: row for row in probes.probes}
    assert areas[attribute].low > 0.9
    assert areas["sex"].auroc == pytest.approx(0.5, abs=0.15)  # drawn at random


def test_findings_that_rest_on_it_fall_among_images_that_share_it(probes: Probes) -> None:
    rows = {(row.attribute, row.finding): row for row in probes.within}
    for attribute, finding in (("file_type", "Nodule"), ("view", "Mass")):
        row = rows[attribute, finding]
        assert row.auroc > 0.75
        assert row.high < -0.1
        assert row.p_holm < 0.01
        others = [other for other in FINDINGS if other != finding]
        assert all(abs(rows[attribute, other].difference) < 0.05 for other in others)
    assert all(abs(rows["sex", finding].difference) < 0.05 for finding in FINDINGS)


def test_ap_differs_between_the_strata(probes: Probes) -> None:
    rows = {(row.value, row.finding): row for row in probes.strata}
    for value, finding in (("JPEG", "Nodule"), ("AP", "Mass")):
        assert rows[value, finding].difference_low > 0.2
    assert rows["JPEG", "Effusion"].difference_low < 0 < rows["JPEG", "Effusion"].difference_high


def test_shifts_that_remove_it_lower_the_finding(planted: Subject) -> None:
    def fall(shifts: Sequence[Shift]) -> dict[tuple[str, str], float]:
        result, _ = audit_shifts(planted, shifts, seed=0)
        return {(row.shift, row.name): row.difference for row in result.rows if row.metric == "auroc"}

    differences = fall([Shift("corners", 20), Shift("jpeg", 20)])
    assert differences["corners_20", "Mass"] < -0.2  # no marker is left
    assert differences["jpeg_20", "Nodule"] < -0.2  # every image is a JPEG now
    assert differences["corners_20", "Mass"] < differences["corners_20", "Nodule"]
    assert differences["jpeg_20", "Nodule"] < differences["jpeg_20", "Mass"]
