"""The report's section on boxes, its sentence in the card, and boxes drawn on the pictures of the gallery."""

import re
from dataclasses import replace

import pandas as pd
import pytest
from evaluated import HOSTILE
from report_inputs import FINDINGS, Page, make

from ral.evaluation.localisation import LABELS, LocalisationRow, to_table
from ral.explain.contents import Gallery
from ral.reporting.card import card
from ral.reporting.localisation import choice, section, summary
from ral.reporting.report import Inputs, render


def rows(
    split: str, gain: float | None = 0.1, low: float = 0.02, shown: bool = True
) -> list[LocalisationRow]:
    """Two layers and the baselines, for two findings; the last feature map points better by `gain`."""
    found = []
    for method, layer, value in (
        ("grad_cam", "layer2", 0.5), ("grad_cam", "", 0.5 + (gain or 0.0)), ("centre", "", 0.2), ("random", "", 0.1)
    ):  # fmt: skip
        is_shown = shown and layer == "layer2"
        difference = None if is_shown or not shown or gain is None else round(value - 0.5, 6)
        for finding in ("Effusion", HOSTILE, "macro"):
            for metric in LABELS:
                found.append(
                    LocalisationRow(
                        split, method, layer, "" if method in ("centre", "random") else "8 × 8",
                        "yes" if is_shown else "no", finding, metric, 123, 45, value, value - 0.05, value + 0.05,
                        difference, None if difference is None else low, None if difference is None else 0.2,
                    )
                )  # fmt: skip
    return found


def inputs(phantom: bool = False, **options: float) -> Inputs:
    made = make(phantom)
    gallery = made.gallery.model_dump(mode="json", exclude_unset=True)
    gallery["findings"][0]["hits"][0]["boxes"] = [[0.25, 0.5, 0.375, 0.75], [0.5, 0.5, 0.6, 0.6]]
    return replace(
        made,
        localisation=to_table([*rows("val", **options), *rows("test", **options)]),
        gallery=Gallery.model_validate(gallery),
    )


def test_without_boxes_there_is_no_section() -> None:
    page = render(make(phantom=False))
    assert 'id="boxes"' not in page
    assert "#boxes" not in page
    assert "<rect" not in "".join(re.findall(r'<div class="pictures">.*?</div>', page, re.DOTALL))
    assert "Heat maps and boxes" not in card(make(phantom=False))
    assert section(None, list(FINDINGS), phantom=False) is None
    assert section(to_table(rows("val")), list(FINDINGS), phantom=False) is None  # none on test images


@pytest.mark.parametrize("phantom", [False, True])
def test_section_has_every_method_and_every_finding(phantom: bool) -> None:
    page = render(inputs(phantom))
    assert page == render(inputs(phantom))
    (part,) = re.findall(r'<section id="boxes">.*?</section>', page, re.DOTALL)
    text = Page(part)
    heads = text.text("th")
    assert "Grad-CAM, layer2 (8 × 8), shown" in heads
    assert {"Grad-CAM (8 × 8)", "Baseline: centre", "Baseline: random point", "Effusion"} <= set(heads)
    assert set(LABELS.values()) <= set(heads)
    assert "0.500 (0.450–0.550)" in text.text("td")
    assert "+0.100 (+0.020 to +0.200)" in text.text("td")
    assert "<script>" not in part
    assert ("PHANTOM" in part) == phantom
    assert "123 test images of 45 patients with boxes" in part
    assert "0.200 for the centre and 0.100 for a random point" in part


def test_the_choice_is_said_of_the_validation_images() -> None:
    better = choice(rows("val"))
    assert "Grad-CAM (8 × 8) points better than these heat maps: +0.100 (+0.020 to +0.200)" in better
    assert "explain.layer" in better
    assert "may be chance" in choice(rows("val", low=-0.01))
    assert "no other method and layer points better" in choice(rows("val", gain=-0.1))
    assert "points best" in choice(rows("val", shown=False))
    assert choice([]) == ""


def test_the_card_has_a_sentence() -> None:
    text = card(inputs())
    (line,) = [line for line in text.splitlines() if line.startswith("Heat maps and boxes")]
    assert "0.500 (0.450–0.550)" in line
    assert "layer2" in line
    assert summary(rows("val")) == ""
    assert "no heat map was made" in summary(rows("test", shown=False))


def test_boxes_are_drawn_on_the_pictures_that_have_them() -> None:
    page = render(inputs())
    pictures = "".join(re.findall(r'<div class="pictures">.*?</div>', page, re.DOTALL))
    assert pictures.count("<svg") == 2  # the image and its heat map
    assert (
        pictures.count('<rect x="25.0" y="50.0" width="12.5" height="25.0"') == 4
    )  # dark and bright, on both
    assert pictures.count("<rect") == 8
    assert pictures.count("2 boxes of the finding") == 4  # label and title
    assert pictures.count("<img") == 2  # the false alarm and the miss
    assert "Frames: the boxes of the finding" in page
    assert "Frames: the boxes" not in render(make(phantom=False))


def test_an_empty_table_is_as_none() -> None:
    empty = replace(make(phantom=False), localisation=to_table([]))
    assert 'id="boxes"' not in render(empty)
    assert "Heat maps and boxes" not in card(empty)
    assert isinstance(empty.localisation, pd.DataFrame)
