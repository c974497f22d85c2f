"""docs/reporting_checklist.md: every item once, and only sections that the report or the model card has."""

import re
from pathlib import Path

import pytest
from report_inputs import Page, make

from ral.reporting.card import card
from ral.reporting.report import render

PAGE = (Path(__file__).parents[2] / "docs" / "reporting_checklist.md").read_text(encoding="utf-8")
TABLES = dict(zip(("CLAIM", "TRIPOD"), re.split(r"^## .*$", PAGE, flags=re.M)[1:], strict=True))
LETTERED = {
    3: "abc",
    5: "ab",
    6: "abc",
    8: "abc",
    9: "abc",
    12: "abcdefg",
    18: "abcdef",
    20: "abc",
    23: "ab",
    27: "abc",
}
ITEMS = {
    "CLAIM": [str(number) for number in range(1, 45)],
    "TRIPOD": [f"{number}{letter}" for number in range(1, 28) for letter in LETTERED.get(number, " ")],
}


def rows(table: str) -> list[list[str]]:
    lines = re.findall(r"^\| (\d.*) \|$", table, flags=re.M)
    return [line.split(" | ") for line in lines]


@pytest.mark.parametrize("guideline", ITEMS)
def test_every_item_is_there_once_and_in_order(guideline: str) -> None:
    items = [item.strip() for item in ITEMS[guideline]]
    listed = []
    for first, *_ in rows(TABLES[guideline]):
        start, _, end = first.partition("–")
        listed += items[items.index(start) : items.index(end or start) + 1]
    assert listed == items
    assert {row[2] for row in rows(TABLES[guideline])} == {"yes", "partly", "no"}


def test_named_sections_exist() -> None:
    inputs = make(phantom=False)
    sections = {*Page(render(inputs)).text("h2"), *re.findall(r"^## (.*)$", card(inputs), re.M)}
    named = set(re.findall(r"(?<!\*)\*([^*\n]+)\*(?!\*)", PAGE))
    assert len(named) > 15
    assert named <= sections
