"""A page of results to look through: one HTML file without network access, sortable by every column."""

import base64
import io
from collections.abc import Iterable, Iterator
from html import escape
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from ral.errors import UserError
from ral.files import atomic_write
from ral.inference.heat import NO_HEAT, heat_map
from ral.inference.images import InputImage
from ral.inference.scoring import Labels, Predicted, Predictor, prepare_image

# Images on a page; each takes about 10 kB.
MAX_IMAGES = 1000
# Side of a picture in pixels.
PICTURE = 128

_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<style>
body {{ font: 15px/1.4 sans-serif; margin: 1.5rem; color: #1c2733; background: #fff }}
h1, p {{ position: sticky; left: 1.5rem; box-sizing: border-box; max-width: min(60rem, 100vw - 3rem) }}
h1 {{ font-size: 1.5rem }}
p {{ overflow-wrap: anywhere }}
.notice {{ border-left: 4px solid #b3261e; padding: .4rem .8rem; font-weight: bold }}
table {{ border-collapse: collapse }}
th, td {{ padding: .3rem .5rem; border-bottom: 1px solid #d5dce4; text-align: left; vertical-align: middle }}
td.number {{ text-align: right; font-variant-numeric: tabular-nums }}
td.positive {{ font-weight: bold; background: #fdebc8 }}
th {{ position: sticky; top: 0; background: #eef2f7 }}
.name {{ position: sticky; left: 0; overflow-wrap: anywhere }}
td.name {{ background: #fff }}
.name, .remarks {{ min-width: 12rem }}
th.name {{ z-index: 1 }}
th button {{ all: unset; cursor: pointer; font-weight: bold }}
th button:focus-visible {{ outline: 2px solid #35618f }}
th[aria-sort=ascending] button::after {{ content: " ▲" }}
th[aria-sort=descending] button::after {{ content: " ▼" }}
img {{ width: {picture}px; height: {picture}px; display: block }}
@media (max-width: 600px) {{ img {{ width: 72px; height: 72px }} .name, .remarks {{ min-width: 7rem }} }}
</style></head><body>
<h1>{title}</h1>
<p class="notice">{notice}.</p>
<p>{text}</p>
<table><thead><tr>
"""

_TAIL = """</tbody></table>
<script>
const body = document.querySelector("tbody");
const heads = document.querySelectorAll("th");
heads.forEach((head, column) => head.querySelector("button")?.addEventListener("click", () => {
  const down = head.getAttribute("aria-sort") !== "descending";
  heads.forEach(other => other.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const key = row => row.cells[column].dataset.sort ?? row.cells[column].textContent;
  const rows = [...body.rows].sort((a, b) => {
    const [x, y] = [key(a), key(b)], number = x !== "" && y !== "" && !isNaN(x) && !isNaN(y);
    return number ? x - y : x.localeCompare(y);
  });
  if (down) rows.reverse();
  body.append(...rows);
}));
</script></body></html>
"""


def write_page(path: Path, predictor: Predictor, images: Iterable[InputImage]) -> int:
    """Write the page: per image the picture, probabilities, decisions, and the heat map of its most probable finding.

    Args:
        path: file to write.
        predictor: the models.
        images: the first `MAX_IMAGES` are shown.

    Returns:
        Number of images on the page.

    Raises:
        UserError: matplotlib is not installed; see also `Predictor.stream`.
    """
    try:
        import matplotlib  # noqa: F401

        from ral.explain.gallery import overlay  # noqa: F401  # fails here, and not after an hour
    except ImportError:
        raise UserError("--report needs matplotlib. Install it: pip install 'ral[report]'") from None
    labels, shown = predictor.labels(), 0
    source = islice(images, MAX_IMAGES)
    with atomic_write(path) as draft, draft.open("w", encoding="utf-8") as stream:
        stream.write(_head(predictor, labels))
        while chunk := list(islice(source, predictor.pass_images)):
            for part in predictor.stream(iter(chunk)):
                for row in _rows(predictor, labels, part, chunk):
                    stream.write(row)
            shown += len(chunk)
        stream.write(_TAIL)
    return shown


def _head(predictor: Predictor, labels: Labels) -> str:
    phantom = any(model.phantom for model in predictor.models)
    title = ("PHANTOM: " if phantom else "") + "Predictions for chest X-ray images"
    of_first = " of the first model" if len(predictor.models) > 1 else ""
    heat = (
        f"The heat map{of_first} belongs to the most probable finding: it shows what the network used, not where "
        "disease is."
        if _has_heat(predictor)
        else NO_HEAT
    )
    text = (
        f"Model {escape(labels.model)}. Probabilities are calibrated; marked ones reach the released threshold. {heat} "
        f"At most {MAX_IMAGES:,} images are shown. Select a heading to sort."
    )
    notice = escape(labels.notice[0].upper() + labels.notice[1:])
    head = _HEAD.format(title=title, notice=notice, text=text, picture=PICTURE)
    sortable = ["Image", "Highest finding", "Probability", "Positive findings", "Remarks", *labels.findings]
    classes = {"Image": ' class="name"', "Remarks": ' class="remarks"'}
    cells = [f'<th scope="col">{name}</th>' for name in ("Picture", "Heat map")[: 1 + _has_heat(predictor)]]
    cells += [
        f'<th scope="col"{classes.get(name, "")}><button>{escape(name)}</button></th>' for name in sortable
    ]
    return f"{head}{''.join(cells)}</tr></thead><tbody>\n"


def _has_heat(predictor: Predictor) -> bool:
    return not predictor.models[0].cpu_only


def _rows(predictor: Predictor, labels: Labels, part: Predicted, chunk: list[InputImage]) -> Iterator[str]:
    preparation = predictor.models[0].preparation
    for index, name in enumerate(part.names):
        scores = part.probabilities[index]
        remarks = "; ".join(filter(None, (part.errors[index], part.warnings[index])))
        picture = heat = highest = probability = ""
        if not part.errors[index]:
            pixels = prepare_image(chunk[index], preparation).pixels
            assert pixels is not None
            picture = _picture(pixels, "the image")
            if not np.isnan(scores).all():
                best = int(np.nanargmax(scores))
                highest, probability = labels.findings[best], f"{scores[best]:.3f}"
                if _has_heat(predictor):
                    heat = _heat(predictor, pixels, best)
        pictures = f"<td>{picture}</td>" + (f"<td>{heat}</td>" if _has_heat(predictor) else "")
        decisions = scores >= labels.thresholds
        positive = [finding for finding, reached in zip(labels.findings, decisions, strict=True) if reached]
        number = "" if part.errors[index] else len(positive)
        yield (
            f'<tr>{pictures}<td class="name">{escape(name)}</td><td>{escape(highest)}</td>'
            f'<td class="number">{probability}</td><td data-sort="{number}">{escape(", ".join(positive))}</td>'
            f"<td>{escape(remarks)}</td>{''.join(map(_cell, scores, decisions))}</tr>\n"
        )


def _cell(score: float, positive: bool) -> str:
    if np.isnan(score):
        return '<td data-sort=""></td>'
    mark = ' positive" title="reaches the released threshold' if positive else ""
    return f'<td class="number{mark}" data-sort="{score:.9g}">{score:.3f}</td>'


def _heat(predictor: Predictor, pixels: np.ndarray, finding: int) -> str:
    from ral.explain.gallery import overlay

    try:
        return _picture(
            overlay(pixels, heat_map(predictor, pixels, finding)), "heat map of the most probable finding"
        )
    except UserError as error:
        return escape(str(error))


def _picture(pixels: np.ndarray, text: str) -> str:
    stream = io.BytesIO()
    picture = Image.fromarray(pixels)
    if picture.width > PICTURE:
        picture = picture.resize((PICTURE, PICTURE), Image.Resampling.BOX)
    picture.save(stream, "JPEG", quality=90)
    return f'<img alt="{text}" src="data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}">'
