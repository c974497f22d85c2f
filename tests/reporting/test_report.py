"""The report: what it says, what it must not say, and that it needs nothing but itself."""

import html
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from ral.config.params import ReportParams
from ral.reporting.report import Inputs, installed_versions, render
from ral.training.state import HISTORY
from tasks import report

HOSTILE = "<script>alert('x')</script> $a_1$ \"&"
NOTHING = {"value": None, "low": None, "high": None}
# Name -> tier, training positives of 1000, test positives of 200, value of every metric.
FINDINGS: dict[str, tuple[str, int, int, float | None]] = {
    "Effusion": ("head", 200, 40, 0.612345),
    HOSTILE: ("medium", 50, 10, 0.234567),
    "Hernia": ("tail", 2, 1, None),
}
PARAMS: dict[str, Any] = {
    "phantom": {"films": 600, "size": 64, "floor": 0.01, "seed": 1},
    "data": {
        "source": "nih", "root": f"/data/{HOSTILE}", "missing_films": "drop", "views": ["PA"], "findings": None,
    },
    "split": {"method": "hash", "val": 0.1, "test": 0.2, "seed": 0},
    "preprocess": {"size": 64, "shard_films": 1000},
    "model": {"backbone": "resnet10t", "options": {"channels": [8, 16]}},
    "loss": {"name": "ral"},
    "train": {
        "epochs": 2, "batch_size": 16, "micro_batch": None, "learning_rate": 0.003, "weight_decay": 0.05,
        "warmup": 0.2, "clip_norm": 1.0, "precision": "float32", "zero_stage": 0, "threads": 1, "seed": 0,
        "augment": {"flip": 0.5, "rotate": 8.0, "shift": 0.06, "zoom": 0.1},
    },
    "evaluate": {
        "head": 0.1, "tail": 0.01, "min_positives": 5, "replicates": 1000, "confidence": 0.95,
        "interval": "bca", "seed": 0, "calibration": {"own": 20, "isotonic": 100, "bins": 15},
        "threshold": {"rule": "max_f1", "sensitivity": 0.9, "miss_cost": 10.0},
        "audit": {"by": ["sex"], "age_bands": [18, 65], "min_positives": 10}, "second_reading": None,
    },
    "report": {"title": f"Trial {HOSTILE}"},
}  # fmt: skip


def estimate(value: float) -> dict[str, float]:
    return {"value": value, "low": round(value - 0.0511, 6), "high": round(value + 0.0622, 6)}


def metrics(data: str) -> dict[str, Any]:
    """A metrics.json whose tier tail has no value; every number in it is different."""
    numbers = iter(np.round(np.arange(0.1, 0.9, 0.0371), 6).tolist())

    def mean(findings: int) -> dict[str, Any]:
        return {metric: estimate(next(numbers)) for metric in ("auroc", "ap", "f1")} | {"findings": findings}

    return {
        "data": data,
        "test": {"rows": 2345, "patients": 678},
        "macro": mean(2),
        "tiers": {
            "head": mean(1),
            "medium": mean(1),
            "tail": {"auroc": NOTHING, "ap": NOTHING, "f1": NOTHING, "findings": 0},
        },
        "not_estimable": {"Hernia": "1 positive test films, at least 5 needed", HOSTILE: f"no F1: {HOSTILE}"},
        "confidence": 0.95,
        "replicates": 1000,
    }


def findings() -> pd.DataFrame:
    rows = []
    for name, (tier, train, test, value) in FINDINGS.items():
        row: dict[str, Any] = {"finding": name, "tier": tier, "train_prevalence": train / 1000}
        row |= {"train_positives": train, "test_positives": test, "test_rows": 200, "threshold": -0.123456}
        for metric in ("auroc", "ap", "f1"):
            missing = value is None or (metric == "f1" and name == HOSTILE)
            one = NOTHING if missing or value is None else estimate(value)
            row |= {metric: one["value"], f"{metric}_low": one["low"], f"{metric}_high": one["high"]}
        rows.append(row | {"not_estimable": ""})
    table = pd.DataFrame(rows)
    floats = [name for name in table.columns if name.startswith(("auroc", "ap", "f1"))]
    return table.astype(dict.fromkeys(floats, np.float64))


def make(phantom: bool) -> Inputs:
    """Small outputs of every step."""
    x = np.linspace(0, 1, 11)
    curves = [
        pd.DataFrame({"finding": name, "curve": curve, "x": x, "y": x})
        for name, (*_, value) in FINDINGS.items()
        if value is not None
        for curve in ("roc", "pr")
    ]
    check = {"check": "film is present", "column": "film_bytes", "remedy": f"Add it. {HOSTILE}"}
    samples = [{"row": 8, "image_id": HOSTILE, "value": None}, {"row": 9, "image_id": "b", "value": HOSTILE}]
    return Inputs(
        params=ReportParams.model_validate(PARAMS),
        verdict={
            "checks": [
                {**check, "passed": False, "samples": samples, "severity": "warning", "unexpected": 4321},
                {**check, "passed": True, "samples": [], "severity": "error", "unexpected": 0},
            ],
            "files": {HOSTILE: {"bytes": 123456, "sha256": "ab" * 32}},
            "films": 1500, "films_without_row": 7, "passed": True, "patients": 900, "phantom": phantom,
            "rows": 5821, "rows_without_film": 4321,
        },
        dataset={
            "films": 1500,
            "findings": list(FINDINGS),
            "left_out": {"no film": 4321, HOSTILE: 3},
            "patients": 800,
            "phantom": phantom,
            "rows": 5821,
            "shards": [{"films": 1500, "name": "00000.arrow", "sha256": "cd" * 32}],
            "size": 64,
            "split": {
                name: {"films": films, "patients": films // 2}
                for name, films in (("train", 1000), ("val", 300), ("test", 200))
            },
        },
        class_counts={
            name: {
                "films": 1000,
                **{kind: dict.fromkeys(FINDINGS, 3) for kind in ("positives", "negatives", "unknown")},
            }
            for name in ("train", "val", "test")
        },
        model={
            "model": {"backbone": "resnet10t", "options": {"channels": [8, 16]}, "head": "linear"},
            "best_epoch": 2, "findings": list(FINDINGS), "loss": "ral", "weights": "average",
            "pretrained_sha256": None, "outputs": "raw logits", "phantom": phantom,
            "pixel_deviation": 63.0, "pixel_mean": 134.0, "size": 64,
        },
        history=pd.DataFrame(
            [
                [1, "network", 0.002, 0.3, 0, 0.1, 0.6, 0.05, 0.55],
                [2, "network", 1e-6, 0.2, 1, 0.2, 0.7, 0.25, 0.75],
            ],
            columns=list(HISTORY),
        ),
        metrics=metrics("phantom" if phantom else "films"),
        findings=findings(),
        curves=pd.concat(curves, ignore_index=True),
        versions={"torch": f"2.0 {HOSTILE}"},
    )  # fmt: skip


class Page(HTMLParser):
    """The elements of a page with their attributes and the text inside."""

    VOID = frozenset({"meta", "link", "br"})

    def __init__(self, content: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str], list[str]]] = []
        self._open: list[tuple[str, dict[str, str], list[str]]] = []
        self.feed(content)
        self.close()
        assert not self._open, "an element is not closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = (tag, {name: value or "" for name, value in attrs}, [])
        self.elements.append(element)
        if tag not in self.VOID:
            self._open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}, []))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        for _, _, text in self._open:
            text.append(data)

    def text(self, tag: str) -> list[str]:
        """The text of every element of one kind, white space made single."""
        return [" ".join("".join(text).split()) for name, _, text in self.elements if name == tag]

    def attributes(self) -> Iterator[tuple[str, str]]:
        for _, attributes, _ in self.elements:
            yield from attributes.items()


@pytest.fixture(scope="module")
def phantom() -> str:
    return render(make(phantom=True))


@pytest.fixture(scope="module")
def real() -> str:
    return render(make(phantom=False))


def test_same_inputs_same_bytes(phantom: str, real: str) -> None:
    assert render(make(phantom=True)) == phantom
    assert render(make(phantom=False)) == real


def test_phantom_is_said_everywhere(phantom: str) -> None:
    page = Page(phantom)
    assert page.text("title")[0].startswith("PHANTOM FILMS – ")
    banner = "PHANTOM FILMS – drawn by a program, not X-rays of people. Nothing here is a clinical result."
    assert page.text("p")[0] == banner
    for tag in ("h1", "h2", "figcaption"):
        assert page.text(tag)
        assert all("PHANTOM" in text for text in page.text(tag)), tag
    figures = page.text("svg")
    assert len(figures) == 8
    assert all("PHANTOM" in text for text in figures)
    assert all(
        "PHANTOM" in a["aria-label"] for _, a, _ in page.elements if a.get("role") in ("img", "region")
    )
    assert '@bottom-center { content: "PHANTOM FILMS' in phantom
    assert "Research software, not a medical device." in page.text("p")


def test_phantom_is_not_said_of_real_films(real: str) -> None:
    assert "PHANTOM" not in real
    assert "drawn by a program" not in real
    assert "Research software, not a medical device." in Page(real).text("p")


@pytest.mark.parametrize("source", ["metrics", "verdict", "dataset", "model"])
def test_one_step_that_saw_phantom_films_is_enough(source: str) -> None:
    inputs = make(phantom=False)
    said = {"data": "phantom"} if source == "metrics" else {"phantom": True}
    assert not inputs.phantom
    assert replace(inputs, **{source: getattr(inputs, source) | said}).phantom


def test_data_stays_text(phantom: str) -> None:
    page = Page(phantom)
    tags = {tag for tag, _, _ in page.elements}
    assert not tags & {"script", "img", "iframe", "object", "embed", "form", "input"}
    assert not [name for name, _ in page.attributes() if name.startswith("on")]
    body = page.text("body")[0]
    # The title, a finding, an image id, a value, a remedy, a reason, a file, a version.
    assert body.count(HOSTILE) >= 14
    assert html.escape("<script>") in phantom
    assert f"row 8, {HOSTILE}" in body
    assert f"row 9, b: {HOSTILE}" in body
    assert f"/data/{HOSTILE}" in body


def test_loads_nothing(phantom: str) -> None:
    page = Page(phantom)
    assert "http" not in phantom.replace("http-equiv", "")
    for name, value in page.attributes():
        if name.rpartition(":")[2] in ("src", "href", "srcset", "data", "poster", "action"):
            assert value.startswith(("#", "data:")), (name, value)
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
            assert target in ids or value == "data:,", (name, value)


def test_all_numbers_of_the_metrics_are_there(real: str) -> None:
    content = metrics("films")
    cells = " ".join(Page(real).text("td"))
    for mean in (content["macro"], *content["tiers"].values()):
        for metric in ("ap", "auroc", "f1"):
            one = mean[metric]
            if one["value"] is not None:
                assert f"{one['value']:.3f} ({one['low']:.3f}–{one['high']:.3f})" in cells
    body = Page(real).text("body")[0]
    assert "2,345 test films of 678 patients" in body
    assert "1,000 bootstrap resamples of the test patients" in body
    for text in (
        "4,321",
        "5,821",
        "film files without a row, not used 7",
        "cd" * 6,
        "train.augment.flip 0.5",
    ):
        assert text in body
    assert f'title="{"cd" * 32}"' in real


def test_not_estimable_is_said_and_never_zero(real: str) -> None:
    rows = [text for text in Page(real).text("tr") if text.startswith(("Hernia tail 0.200 %", "tail 0 of 1"))]
    by_tier, by_finding = rows[0], rows[1]
    assert by_tier.count("not estimable") == 4
    assert by_finding.count("not estimable") == 3
    assert "0.000" not in by_tier + by_finding
    listed = Page(real).text("li")
    assert "Hernia: 1 positive test films, at least 5 needed." in listed
    assert "Mean of the tier tail: none of its findings is estimable." in listed
    assert "Without curves, since not estimable: Hernia." in Page(real).text("p")


def test_nothing_is_estimable() -> None:
    inputs = make(phantom=False)
    empty = {"auroc": NOTHING, "ap": NOTHING, "f1": NOTHING, "findings": 0}
    floats = [name for name in inputs.findings.columns if name.startswith(("auroc", "ap", "f1"))]
    content = render(
        replace(
            inputs,
            metrics=inputs.metrics
            | {"macro": empty, "tiers": dict.fromkeys(("head", "medium", "tail"), empty)},
            findings=inputs.findings.assign(**dict.fromkeys(floats, np.nan)),
            curves=inputs.curves.iloc[:0],
        )
    )
    body = Page(content).text("body")[0]
    assert "Macro AP not estimable mean over 0 findings" in body
    assert "0.000" not in body.replace("An F1 of 0.000", "")


def test_findings_are_sorted_by_prevalence() -> None:
    inputs = make(phantom=False)
    backwards = replace(inputs, findings=inputs.findings.iloc[::-1].reset_index(drop=True))
    assert render(backwards) == render(inputs)


def test_versions() -> None:
    versions = installed_versions()
    assert next(iter(versions)) == "python"
    assert "not installed" not in (versions["pandas"], versions["torch"])


def write(inputs: Inputs, folder: Path) -> tuple[Path, Path, Path, Path]:
    """The files of the steps before, as they would write them."""
    texts = {
        "validated/verdict.json": inputs.verdict,
        "prepared/dataset.json": inputs.dataset,
        "prepared/class_counts.json": inputs.class_counts,
        "models/model.json": inputs.model,
        "models/history.csv": inputs.history,
        "reports/metrics.json": inputs.metrics,
        "reports/findings.csv": inputs.findings,
        "reports/curves.csv": inputs.curves,
    }
    for name, content in texts.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        if isinstance(content, pd.DataFrame):
            content.to_csv(path, index=False)
        else:
            path.write_text(json.dumps(content), encoding="utf-8")
    return folder / "validated", folder / "prepared", folder / "models", folder / "reports"


def test_the_step_renders_what_the_files_hold(tmp_path: Path) -> None:
    inputs = make(phantom=True)
    out = tmp_path / "out" / "report.html"
    report.run(inputs.params, *write(inputs, tmp_path), out)
    assert out.read_text(encoding="utf-8") == render(replace(inputs, versions=installed_versions()))


@pytest.mark.skipif(not shutil.which("chromium"), reason="no chromium to lay the page out")
@pytest.mark.parametrize("width", [390, 1280])
def test_fits_the_width_of_the_screen(phantom: str, width: int, tmp_path: Path) -> None:
    # In a frame, since a browser window cannot be as narrow as a phone.
    frame = tmp_path / "frame.html"
    frame.write_text(
        f"""<meta charset="utf-8"><p id="widths"></p>
        <iframe width="{width}" height="800" style="border:0" srcdoc="{html.escape(phantom)}"
        onload="const page = this.contentDocument.documentElement;
        widths.textContent = page.scrollWidth + ' of ' + page.clientWidth"></iframe>""",
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
        timeout=60,
        check=True,
    )
    found = re.search(r'<p id="widths">(\d+) of (\d+)</p>', done.stdout)
    assert found
    assert int(found[1]) <= int(found[2]) <= width
