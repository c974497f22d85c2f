"""The report: required and forbidden content, escaping, no external resources."""

import html
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from evaluated import HOSTILE, NOTHING
from report_inputs import LISTS, Page, make, metrics, write

from ral.data.dataset_info import DatasetInfo
from ral.data.validation.result import ValidationResult
from ral.evaluation.results import Metrics
from ral.models.info import ModelInfo
from ral.reporting.card import card
from ral.reporting.report import installed_versions, render
from ral.reporting.scripts import SCRIPTS, policy
from tasks import report


@pytest.fixture(scope="module")
def phantom() -> str:
    return render(make(phantom=True))


@pytest.fixture(scope="module")
def real() -> str:
    return render(make(phantom=False))


def test_same_inputs_same_bytes(phantom: str, real: str) -> None:
    assert render(make(phantom=True)) == phantom
    assert render(make(phantom=False)) == real


def test_one_banner_and_every_picture_say_phantom(phantom: str) -> None:
    page = Page(phantom)
    assert page.text("title")[0].startswith("PHANTOM DATA – ")
    banner = (
        "PHANTOM DATA – synthetic images drawn by a program, not patients. Nothing here has clinical meaning."
    )
    assert page.text("p")[0] == banner
    assert phantom.count("drawn by a program") == 1
    for tag in ("h1", "h2", "figcaption", "td", "th"):
        assert page.text(tag)
        assert not any("PHANTOM" in text for text in page.text(tag)), tag
    figures = page.text("svg")
    assert len(figures) == 15
    assert all("PHANTOM" in text for text in figures)
    assert all("PHANTOM" in a["aria-label"] for _, a, _ in page.elements if a.get("role") == "img")
    pictures = [a["alt"] for tag, a, _ in page.elements if tag == "img"]
    assert len(pictures) == 4
    assert all("PHANTOM" in alt for alt in pictures)
    assert '@bottom-center { content: "PHANTOM DATA' in phantom
    assert "Research software, not a medical device." in page.text("p")


def test_phantom_is_not_said_of_real_images(real: str) -> None:
    assert "PHANTOM" not in real
    assert "drawn by a program" not in real
    assert "Research software, not a medical device." in Page(real).text("p")


@pytest.mark.parametrize(
    "source", ["metrics", "validation", "dataset", "model", "calibration", "gallery", "geometry"]
)
def test_one_step_that_saw_phantom_images_is_enough(source: str) -> None:
    inputs = make(phantom=False)
    content = getattr(inputs, source)
    if isinstance(content, ValidationResult | DatasetInfo | ModelInfo):
        changed = content.model_copy(update={"phantom": True})
    else:
        changed = content.model_copy(update={"data": "phantom"})
    assert not inputs.phantom
    assert replace(inputs, **{source: changed}).phantom


def test_data_stays_text(phantom: str) -> None:
    page = Page(phantom)
    tags = {tag for tag, _, _ in page.elements}
    scripts = [text for tag, _, text in page.elements if tag == "script"]
    assert scripts == [[script] for script in SCRIPTS]
    rule = next(a["content"] for _, a, _ in page.elements if a.get("http-equiv"))
    assert rule.endswith(f"script-src {policy()}")
    assert not tags & {"iframe", "object", "embed", "form", "input"}
    assert not [name for name, _ in page.attributes() if name.startswith("on")]
    body = page.text("body")[0]
    # The title, a finding, an image id, a value, a remedy, a reason, a file, a version.
    assert body.count(HOSTILE) >= 45
    assert html.escape("<script>") in phantom
    assert f"row 8, {HOSTILE}" in body
    assert f"row 9, b: {HOSTILE}" in body
    assert f"/data/{HOSTILE}" not in body  # a place, not shown
    # A group of the audit, an image of the gallery, its labels, a note, a row of the map, a note of a reading.
    for shown in (
        f"{HOSTILE} 100 50 2 0.700",
        f"{HOSTILE} calibrated score 0.7773, threshold 0.3217, rank 1 of 1,200; labels: {HOSTILE}",
        f"{HOSTILE}; unknown: {HOSTILE}",
        "b.png calibrated score 0.7773, threshold 0.3217, rank 2 of 1,200; labels: none of the findings",
        f"on a grid of 8 × 8 of layer2, an earlier layer (coarse {HOSTILE}).",
        f"No test image: {HOSTILE}",
        f"Effusion {HOSTILE} 40 10",
        f"too few: {HOSTILE}",
    ):
        assert shown in body, shown
    titles = [value for name, value in page.attributes() if name == "title"]
    assert f"too few: 3 patients {HOSTILE}" in titles


def test_loads_nothing(phantom: str) -> None:
    page = Page(phantom)
    assert "http" not in phantom.replace("http-equiv", "")
    for name, value in page.attributes():
        if name.rpartition(":")[2] in ("src", "href", "srcset", "data", "poster", "action"):
            # run.css: the file beside the page that names the run.
            assert value.startswith(("#", "data:")) or (name, value) == ("href", "run.css"), (name, value)
        assert not re.search(r"url\((?!#)", value), (name, value)
    style = page.text("style")[0]
    assert "url(" not in style
    assert "@import" not in style


def test_ids_are_unique_and_references_are_met(phantom: str) -> None:
    attributes = list(Page(phantom).attributes())
    ids = [value for name, value in attributes if name == "id"]
    assert len(ids) == len(set(ids))
    for name, value in attributes:
        for target in re.findall(r"url\(#([^)]*)\)", value) + [value[1:]] * (name == "href"):
            assert target in ids or value in ("data:,", "run.css"), (name, value)


def test_all_numbers_of_the_metrics_are_there(real: str) -> None:
    content = metrics("images")
    cells = " ".join(Page(real).text("td"))
    means = (content["macro"], content["tiers"]["head"], content["tiers"]["medium"])
    for mean in means:
        for metric in ("ap", "auroc", "f1", "sensitivity_at_90_specificity"):
            one = mean[metric]
            assert f"{one['value']:.3f} ({one['low']:.3f}–{one['high']:.3f})" in cells
    body = Page(real).text("body")[0]
    assert "2,345 test images of 678 patients" in body
    assert "1,000 bootstrap resamples of the test patients" in body
    for text in (
        "BCa intervals from 1,000",
        "4,321",
        "5,824",
        "image files without a row, not used 7",
        "cd" * 6,
        "train.augment.flip 0.5",
    ):
        assert text in body
    assert f'title="{"cd" * 32}"' in real


def test_not_estimable_is_said_and_never_zero(real: str) -> None:
    rows = [
        text for text in Page(real).text("tr") if text.startswith(("Hernia tail 2 (0.200 %)", "tail 0 of 1"))
    ]
    by_tier, by_finding = rows[0], rows[1]
    assert by_tier.count("not estimable") == 5
    assert by_finding.count("not estimable") == 4
    assert "0.000" not in by_tier + by_finding
    listed = Page(real).text("li")
    assert "Hernia: 1 positive test images, at least 5 needed." in listed
    assert "Mean of the tier tail: none of its findings is estimable." in listed
    assert "No curves, because not estimable: Hernia." in Page(real).text("p")


def test_nothing_is_estimable() -> None:
    inputs = make(phantom=False)
    scores = ("auroc", "ap", "f1", "sensitivity", "brier", "log_loss", "ece")
    empty = {
        **dict.fromkeys(("auroc", "ap", "f1", "sensitivity_at_90_specificity"), NOTHING),
        "findings": 0,
    }
    floats = [name for name in inputs.findings.columns if name.startswith(scores)]
    content = render(
        replace(
            inputs,
            metrics=Metrics.model_validate(
                metrics("images")
                | {"macro": empty, "micro": empty, "tiers": dict.fromkeys(("head", "medium", "tail"), empty)}
                | {"cxr_lt": {"mAP": NOTHING}}
            ),
            findings=inputs.findings.assign(**dict.fromkeys(floats, np.nan)),
            curves=inputs.curves.iloc[:0],
            **{name: getattr(inputs, name).iloc[:0] for name in LISTS},
        )
    )
    body = Page(content).text("body")[0]
    assert "Macro AP not estimable mean over 0 findings" in body
    assert "0.000" not in body.replace("An F1 of 0.000", "")
    assert "No gap could be tested" in body
    assert "No finding has a reliability curve" in body
    assert "No pair of findings is confused more often" in body


def test_findings_are_sorted_by_prevalence() -> None:
    inputs = make(phantom=False)
    backwards = replace(inputs, findings=inputs.findings.iloc[::-1].reset_index(drop=True))
    assert render(backwards) == render(inputs)


def test_versions() -> None:
    versions = installed_versions()
    assert next(iter(versions)) == "python"
    assert "not installed" not in (versions["pandas"], versions["torch"])


def test_the_step_renders_what_the_files_hold(tmp_path: Path) -> None:
    inputs = make(phantom=True)
    out = tmp_path / "out" / "report.html"
    report.run(inputs.params, *write(inputs, tmp_path), out)
    assert out.read_text(encoding="utf-8") == render(replace(inputs, versions=installed_versions()))
    written = (tmp_path / "out" / "model_card.md").read_text(encoding="utf-8")
    assert written == card(inputs)


@pytest.mark.skipif(not shutil.which("chromium"), reason="no chromium to lay the page out")
@pytest.mark.parametrize("width", [390, 1280])
def test_fits_the_width_of_the_screen(phantom: str, width: int, tmp_path: Path) -> None:
    # In a frame, since a browser window cannot be as narrow as a phone.
    frame = tmp_path / "frame.html"
    frame.write_text(
        f"""<meta charset="utf-8"><p id="widths"></p>
        <iframe width="{width}" height="800" style="border:0" srcdoc="{html.escape(phantom)}"
        onload="const page = this.contentDocument.documentElement;
        widths.textContent = [page.scrollWidth, page.clientWidth, page.scrollHeight]"></iframe>""",
        encoding="utf-8",
    )
    options = (
        "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --dump-dom"
    )
    done = subprocess.run(
        ["chromium", *options.split(), f"--user-data-dir={tmp_path / 'profile'}", frame.as_uri()],
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=True,
    )
    found = re.search(r'<p id="widths">(\d+),(\d+),(\d+)</p>', done.stdout)
    assert found
    assert int(found[1]) <= int(found[2]) <= width
    assert int(found[3]) < 15_000
