"""The boxes of the phantom's signs: where they are, and their table."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ral.config.data import PhantomConfig
from ral.phantom.archive import write_phantom
from ral.phantom.boxes import GAP, HEADER, Box, boxes_of
from ral.phantom.population import FINDINGS, PhantomImage
from ral.phantom.signs import EXTENT, RESHAPE, draw_image, draw_with_boxes

SIZE = 96
SMALL = PhantomConfig(images=200, size=48, floor=0.02, seed=1)


def image_of(patient: int, *findings: str) -> PhantomImage:
    return PhantomImage(patient, follow_up=0, age=50, sex="F", view="PA", findings=findings, test=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("phantom")
    write_phantom(path, SMALL)
    return path


def test_table_has_the_layout_of_nih(folder: Path) -> None:
    lines = (folder / "BBox_List_2017.csv").read_text().splitlines()
    assert lines[0] == HEADER == "Image Index,Finding Label,Bbox [x,y,w,h],,,"
    table = [line.split(",") for line in (folder / "Data_Entry_2017.csv").read_text().splitlines()[1:]]
    labels = {
        (row[0], name.replace("Infiltration", "Infiltrate"))
        for row in table
        for name in row[1].split("|")
        if name != "No Finding"
    }
    rows = [line.split(",") for line in lines[1:]]
    assert {(row[0], row[1]) for row in rows} == labels  # each sign has a box
    for row in rows:
        x, y, w, h = map(int, row[2:6])
        assert row[6:] == ["", "", ""]
        assert 0 <= x < x + w <= SMALL.size
        assert 0 <= y < y + h <= SMALL.size


@pytest.mark.parametrize("finding", FINDINGS)
def test_the_change_that_a_finding_makes_is_in_its_boxes(finding: str) -> None:
    """Most of it; a sign fades beyond its box, and what reshapes the chest moves its other outlines too."""
    for patient in range(1, 13):
        ill, boxes = draw_with_boxes(image_of(patient, finding), SIZE, 1)
        change = np.abs(ill.astype(float) - draw_image(image_of(patient), SIZE, 1))
        inside = np.zeros((SIZE, SIZE), bool)
        for x, y, w, h in boxes[finding]:
            inside[y : y + h, x : x + w] = True
        share = change[inside].sum() / change.sum()
        assert share > (0.2 if finding in RESHAPE else 0.5), (patient, share)
        assert share > 1.3 * inside.mean(), (patient, share)


def test_boxes_do_not_depend_on_other_painted_findings() -> None:
    painted = [name for name in FINDINGS if name not in RESHAPE]
    for patient in range(1, 5):
        together = draw_with_boxes(image_of(patient, *painted), SIZE, 1)[1]
        for name in painted:
            assert draw_with_boxes(image_of(patient, name), SIZE, 1)[1][name] == together[name]


def test_the_box_of_the_heart_grows_with_it() -> None:
    assert set(EXTENT) == {"Cardiomegaly", "Emphysema"}
    for patient in range(1, 5):
        (heart,) = draw_with_boxes(image_of(patient, "Cardiomegaly"), SIZE, 1)[1]["Cardiomegaly"]
        lungs = draw_with_boxes(image_of(patient, "Emphysema"), SIZE, 1)[1]["Emphysema"]
        assert 0.35 < heart.w / SIZE < 0.65
        assert heart.x + heart.w / 2 > SIZE / 2  # the heart is mostly on the right of the image
        assert sum(box.w * box.h for box in lungs) > 0.25 * SIZE**2


def test_follow_ups_have_boxes_of_their_own() -> None:
    first = image_of(3, "Mass")
    assert draw_with_boxes(first, SIZE, 1)[1] != draw_with_boxes(replace(first, follow_up=1), SIZE, 1)[1]


def test_parts_that_are_apart_have_a_box_each() -> None:
    strength = np.zeros((100, 100), np.float32)
    strength[10:20, 10:14] = 0.8
    strength[70:90, 50:60] = 1.0
    assert boxes_of(strength) == [Box(10, 10, 4, 10), Box(50, 70, 10, 20)]
    strength[50, 50] = 1.0  # a speck
    assert boxes_of(strength) == [Box(10, 10, 4, 10), Box(50, 70, 10, 20)]
    strength[:, 80:] = 0.39  # too weak
    assert len(boxes_of(strength)) == 2
    assert boxes_of(np.zeros((8, 8), np.float32)) == []


def test_parts_that_are_near_share_a_box() -> None:
    near = round(GAP * 100)
    for apart, boxes in ((near, 1), (near + 1, 2)):
        strength = np.zeros((100, 100), np.float32)
        strength[10:20, 10:20] = strength[10:20, 20 + apart : 30 + apart] = 1
        assert len(boxes_of(strength)) == boxes, apart
