"""The flow figure of the report (as in STARD and CONSORT): from the rows of the label table to the images of
each split.
"""

import textwrap
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from ral.data.dataset_info import DatasetInfo
from ral.data.validation.result import ValidationResult
from ral.errors import UserError
from ral.evaluation.results import ScoredImages
from ral.labels import marked
from ral.reporting.plots import plain
from ral.reporting.tables import SPLITS
from ral.wording import percent, pluralize

# Units of the drawing; at 390 pixels of screen width, one is about a pixel.
WIDTH, MAIN, SIDE, PART = 360, 136, 204, 116
LINE, PADDING, GAP, FONT = 16, 9, 26, 12
# Characters on a line of the box of exclusions, and of a reason.
LETTERS, LONGEST = 25, 120

TITLE = "From the rows of the label table to the images of each split"


def flow(
    name: str, validation: ValidationResult, dataset: DatasetInfo, test: ScoredImages, phantom: bool
) -> str:
    """Draw the flow figure as an SVG element for an HTML page.

    Args:
        name: prefix of the ids, unique within a page.
        validation: content of validation.json.
        dataset: content of dataset.json.
        test: the test images of metrics.json.
        phantom: whether to draw the watermark.

    Raises:
        UserError: the counts of dataset.json do not add up, so an image would be counted twice or not at all.
    """
    excluded = _excluded(dataset)
    label = marked(TITLE, phantom, ". ")
    words = marked(_words(validation, dataset, excluded, test), phantom, ". ")
    root = Element("svg", {"role": "img", "aria-label": label, "aria-describedby": f"{name}-words"})
    SubElement(root, "title").text = label
    SubElement(root, "desc", {"id": f"{name}-words"}).text = words
    centre, side = MAIN / 2, WIDTH - SIDE

    top = [f"{dataset.rows:,} rows", f"{validation.patients:,} patients"]
    y = _box(root, 0, 0, MAIN, "Label table", top)
    reasons = _reasons(dataset, excluded)
    bottom = _box(root, side, y + GAP / 2, SIDE, "Excluded", reasons)
    _arrow(root, [(centre, (y + GAP / 2 + bottom) / 2), (side, (y + GAP / 2 + bottom) / 2)])
    _arrow(root, [(centre, y), (centre, bottom + GAP / 2)])
    used = [f"{dataset.images:,} images", f"{dataset.patients:,} patients"]
    y = _box(root, 0, bottom + GAP / 2, MAIN, "Used", used)
    for index, (split, title) in enumerate(SPLITS.items()):
        x = index * (WIDTH - PART) / 2
        part = dataset.split[split]
        lines = [f"{part.images:,} images", f"{part.patients:,} patients"]
        if split == "test" and test.sealed_patients:
            lines.append(f"({test.sealed_patients:,} sealed)")
        _arrow(
            root, [(centre, y), (centre, y + GAP / 2), (x + PART / 2, y + GAP / 2), (x + PART / 2, y + GAP)]
        )
        end = _box(root, x, y + GAP, PART, title.capitalize(), lines)
    root.set("viewBox", f"-1 -1 {WIDTH + 2} {end + 2:g}")
    if phantom:
        _text(
            root, WIDTH / 2, end / 2, "PHANTOM", style="middle",
            extra={"font-size": "66", "font-weight": "bold", "fill": "#d43c3c", "opacity": "0.15",
                   "transform": f"rotate(-35 {WIDTH / 2:g} {end / 2:g})"},
        )  # fmt: skip
    return ElementTree.tostring(root, encoding="unicode")


def _excluded(dataset: DatasetInfo) -> int:
    """Number of excluded rows; each has one reason."""
    excluded = sum(dataset.left_out.values())
    in_splits = sum(dataset.split[split].images for split in SPLITS)
    if excluded + dataset.images != dataset.rows or in_splits != dataset.images:
        raise UserError(
            f"dataset.json: {dataset.rows:,} rows are not {excluded:,} excluded and "
            f"{dataset.images:,} used images, "
            f"of which {in_splits:,} are in the splits. Run preprocess again."
        )
    return excluded


def _reasons(dataset: DatasetInfo, excluded: int) -> list[str]:
    """The lines of the box of exclusions."""
    lines = [f"{pluralize(excluded, 'row', 'rows')} ({percent(excluded / dataset.rows)})"]
    for reason, count in sorted(dataset.left_out.items()):
        lines += textwrap.wrap(f"{count:,}: {plain(reason, LONGEST)}", LETTERS)
    return lines


def _words(validation: ValidationResult, dataset: DatasetInfo, excluded: int, test: ScoredImages) -> str:
    """The figure in words."""
    reasons = ", ".join(
        f"{count:,} {plain(reason, LONGEST)}" for reason, count in sorted(dataset.left_out.items())
    )
    parts = ", ".join(
        f"{title} {dataset.split[split].images:,} images of {dataset.split[split].patients:,} patients"
        for split, title in SPLITS.items()
    )
    sealed = test.sealed_patients
    return (
        f"{dataset.rows:,} rows of {validation.patients:,} patients in the label table; {excluded:,} "
        "rows excluded"
        f"{f' ({reasons})' if reasons else ''}; {dataset.images:,} images of {dataset.patients:,} patients used: "
        f"{parts}{f' ({sealed:,} of them sealed)' if sealed else ''}."
    )


def _box(root: Element, x: float, y: float, width: float, title: str, lines: list[str]) -> float:
    """Draw a box with a title and lines of text, and return its lower end."""
    height = 2 * PADDING + LINE * (1 + len(lines))
    shape = {"x": f"{x:g}", "y": f"{y:g}", "width": f"{width:g}", "height": f"{height:g}", "rx": "4"}
    SubElement(root, "rect", {**shape, "fill": "none", "stroke": "currentColor", "stroke-opacity": "0.6"})
    for index, line in enumerate([title, *lines]):
        weight = {"font-weight": "bold"} if index == 0 else {}
        _text(root, x + PADDING, y + PADDING + LINE * index + FONT, line, "start", weight)
    return y + height


def _text(root: Element, x: float, y: float, text: str, style: str, extra: dict[str, str]) -> None:
    where = {
        "x": f"{x:g}",
        "y": f"{y:g}",
        "font-size": f"{FONT}",
        "fill": "currentColor",
        "text-anchor": style,
    }
    SubElement(root, "text", where | extra).text = text


def _arrow(root: Element, points: list[tuple[float, float]]) -> None:
    """A line through some points, with a head at the last."""
    before_x, (x, y) = points[-2][0], points[-1]
    right, down = (1, 0) if x > before_x else (0, 1)
    head = [
        (x - 5 * right - 4 * down, y - 5 * down - 4 * right),
        (x, y),
        (x - 5 * right + 4 * down, y - 5 * down + 4 * right),
    ]
    for line in (points, head):
        path = "M" + " L".join(f"{px:g} {py:g}" for px, py in line)
        SubElement(
            root, "path", {"d": path, "fill": "none", "stroke": "currentColor", "stroke-opacity": "0.6"}
        )
