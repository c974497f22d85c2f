"""The flow figure: every row of the table is counted once, and the text stays inside its box."""

import re
from xml.etree import ElementTree

import pytest
from prepared_data import dataset_info
from simulated_release import PASSED

from ral.data.dataset_info import DatasetInfo, SplitSize
from ral.errors import UserError
from ral.evaluation.results import ScoredImages
from ral.reporting.flow import FONT, WIDTH, flow

VALIDATION = PASSED.model_copy(update={"patients": 900})
LEFT_OUT = {"no image": 97125, "view not in data.views": 1204, "image cannot be decoded " + "x" * 300: 3}
DATASET = dataset_info(
    64, [], [], rows=112120, left_out=LEFT_OUT, images=13788, patients=800,
    split={
        "train": SplitSize(images=10000, patients=600),
        "val": SplitSize(images=2000, patients=120),
        "test": SplitSize(images=1788, patients=80),
    },
)  # fmt: skip


TEST = ScoredImages(rows=1788, patients=80)
SEALED = ScoredImages(rows=1788, patients=80, sealed_patients=20)


def lines(dataset: DatasetInfo, test: ScoredImages = TEST) -> list[str]:
    root = ElementTree.fromstring(flow("flow", VALIDATION, dataset, test, phantom=False))
    return [element.text or "" for element in root.iter("text")]


def counts(shown: list[str], unit: str) -> list[int]:
    found = [re.match(rf"([\d,]+){unit}", line) for line in shown]
    return [int(match[1].replace(",", "")) for match in found if match]


def test_exclusions_and_images_used_are_the_rows() -> None:
    shown = lines(DATASET)
    rows, excluded = counts(shown, " row")
    reasons = counts(shown, ": ")
    used, *splits = counts(shown, " image")
    assert (rows, len(reasons)) == (112120, 3)
    assert sum(reasons) == excluded
    assert excluded + used == rows
    assert sum(splits) == used
    assert counts(shown, " patients") == [900, 800, 600, 120, 80]
    assert "98,332 rows (87.7 %)" in shown


def test_counts_that_do_not_add_up_are_refused() -> None:
    with pytest.raises(UserError, match="112,121 rows are not 98,332 excluded and 13,788 used"):
        lines(DATASET.model_copy(update={"rows": 112121}))
    split = {**DATASET.split, "val": SplitSize(images=1999, patients=120)}
    with pytest.raises(UserError, match="of which 13,787 are in the splits"):
        lines(DATASET.model_copy(update={"split": split}))


def test_nothing_excluded() -> None:
    shown = lines(DATASET.model_copy(update={"rows": 13788, "left_out": {}}))
    assert "0 rows (0.00 %)" in shown
    assert "(20 sealed)" in lines(DATASET, SEALED)
    assert not [line for line in shown if "sealed" in line]


def test_text_stays_inside_its_box() -> None:
    """In a wide font (0.62 em a character), the longest line of each box ends before the box does."""
    root = ElementTree.fromstring(flow("flow", VALIDATION, DATASET, SEALED, phantom=False))
    boxes = [{key: float(value) for key, value in one.attrib.items() if key in ("x", "y", "width", "height")}
             for one in root.iter("rect")]  # fmt: skip
    assert len(boxes) == 6
    for text in root.iter("text"):
        x, y = float(text.attrib["x"]), float(text.attrib["y"])
        box = next(
            box
            for box in boxes
            if box["x"] <= x <= box["x"] + box["width"] and box["y"] < y < box["y"] + box["height"]
        )
        assert x + 0.62 * FONT * len(text.text or "") <= box["x"] + box["width"], text.text
        assert box["x"] + box["width"] <= WIDTH


def test_words_say_the_same() -> None:
    root = ElementTree.fromstring(flow("flow", VALIDATION, DATASET, SEALED, phantom=True))
    words = root.find("desc")
    assert words is not None
    assert root.attrib["aria-describedby"] == words.attrib["id"] == "flow-words"
    assert (words.text or "").startswith(
        "PHANTOM DATA. 112,120 rows of 900 patients in the label table; 98,332 rows excluded (3 image "
        "cannot be decoded x"
    )
    assert (words.text or "").endswith("test 1,788 images of 80 patients (20 of them sealed).")
    assert (root.find("title").text or "").startswith("PHANTOM DATA. ")  # type: ignore[union-attr]
