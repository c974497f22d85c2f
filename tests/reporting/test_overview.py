"""The first screen of the report, and the run that it names."""

import os
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from forks import forks
from report_inputs import PARAMS, Page, make, write
from ruamel.yaml import YAML

from ral.config.params import ReportParams
from ral.evaluation.table_rows import ComparisonRow, read_rows
from ral.reporting import overview
from ral.reporting.report import render, rows_of
from ral.reporting.run_info import write_run_info
from ral.reporting.tables import Table
from ral.runs import Machine, RunRecord, StepRecord

ROOT = Path(__file__).parents[2]
RECORD = RunRecord(
    id="20270102T030405-6", commit="0123456789abcdef" * 2, uncommitted_changes=False,
    machine=Machine(host="host", system="Linux", python="3.11", cores=2),
    steps={"report": StepRecord(started="2027-01-02T03:04:05.678+00:00", status="running")},
)  # fmt: skip


def texts(table: Table) -> list[list[str]]:
    return [[cell if isinstance(cell, str) else cell.text for cell in row] for row in table.rows]


def dumped(page: Path, folder: Path, fragment: str = "") -> str:
    """The page after its scripts have run in Chromium."""
    options = (
        "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --dump-dom"
    )
    done = subprocess.run(
        ["chromium", *options.split(), f"--user-data-dir={folder / 'profile'}", page.as_uri() + fragment],
        capture_output=True, text=True, encoding="utf-8", check=True,
    )  # fmt: skip
    return done.stdout


def test_what_was_trained_on_what() -> None:
    inputs = make(phantom=False)
    assert overview.facts("nih", False, inputs.dataset, inputs.model) == {
        "Source": "nih",
        "Images": "1,500",
        "Patients": "800",
        "Network": "resnet10t, 64 × 64 pixels, from random weights",
        "Loss": "ral",
    }
    config = inputs.model.model.model_copy(update={"head": "csra"})
    network = inputs.model.model_copy(update={"model": config, "pretrained_sha256": "ab"})
    facts = overview.facts("nih", True, inputs.dataset, network)
    assert facts["Source"] == "phantom images in the layout of nih"
    assert facts["Network"] == "resnet10t, head csra, 64 × 64 pixels, pretrained"


def test_differences_to_the_previous_model_stand_beside_the_metrics() -> None:
    inputs = make(phantom=False)
    rows = rows_of(inputs.findings)

    def headline(comparison: pd.DataFrame) -> list[overview.Headline]:
        return overview.headline(inputs.metrics, rows, read_rows(comparison, ComparisonRow))

    cards = headline(inputs.comparison)
    assert [card.name for card in cards] == ["Macro AP", "Macro AUROC", "Macro F1"]
    difference, previous = "+0.031 (+0.011 to +0.052)", "to the previous model: 0.481"
    assert [(card.difference, card.previous) for card in cards] == [(difference, previous)] * 2 + [("", "")]
    fewer = headline(inputs.comparison.assign(images=100))[0]
    assert (fewer.difference, fewer.previous) == (
        difference,
        f"{previous} on the 100 images that both scored",
    )
    unknown = headline(inputs.comparison.assign(difference=np.nan))[0]
    assert (unknown.difference, unknown.previous) == ("", "previous model: not comparable")
    assert f"{difference} {previous}" in Page(render(inputs)).text("body")[0]
    alone = replace(inputs, comparison=inputs.comparison[:0])
    assert not any(card.previous for card in headline(alone.comparison))
    assert "There is no previous model to compare with." in Page(render(alone)).text("p")


def test_parameters_that_differ_from_the_defaults() -> None:
    losses = {"name": "focal", "focal": {"gamma": 3.0}, "ral": {"clip": 0.1}}
    params = ReportParams.model_validate(PARAMS | {"explain": {"per_kind": 5}, "loss": losses})
    shown = {row[0]: row[1:] for row in texts(overview.changed_parameters(params))}
    assert shown["explain.per_kind"] == ["3", "5"]
    assert shown["train.warmup"] == ["0.1", "0.2"]
    assert shown["loss.focal.gamma"] == ["2.0", "3.0"]
    assert not any(key in shown for key in ("train.weight_decay", "loss.name", "loss.ral.clip"))
    assert not any(key.startswith("gate") for key in shown)


def test_the_page_is_the_same_whatever_run_made_it(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text(render(make(phantom=True)), encoding="utf-8")
    before = page.read_bytes()
    write_run_info(page, RECORD)
    assert page.read_bytes() == before
    assert RECORD.id.encode() not in before
    digest = re.search(r'data-report="([0-9a-f]{16})"', before.decode())
    assert digest
    expected = (
        '--run-id: "20270102T030405-6"; --run-commit: "0123456789ab"; --run-date: "2027-01-02 03:04 UTC";'
    )
    assert (tmp_path / "run.css").read_text() == f':root[data-report="{digest[1]}"] {{ {expected} }}\n'
    changes = {"id": '"} body { display: none } x{"', "commit": None, "uncommitted_changes": True}
    hostile = RECORD.model_copy(update=changes)
    write_run_info(page, hostile)
    written = (tmp_path / "run.css").read_text()
    assert written.count("{") == written.count("}") == 1
    assert '--run-commit: "no git repository and uncommitted changes"' in written


def test_another_page_has_another_digest() -> None:
    inputs = make(phantom=False)
    pages = [render(inputs), render(replace(inputs, versions={"torch": "3"}))]
    assert len({re.search(r'data-report="(\w*)"', page)[1] for page in pages}) == 2  # type: ignore[index]


@pytest.mark.skipif(not shutil.which("chromium"), reason="no chromium to open the page in")
def test_the_page_shows_the_run_of_its_own_run_file_only(tmp_path: Path) -> None:
    page, other = tmp_path / "report.html", tmp_path / "other.html"
    page.write_text(render(make(phantom=True)), encoding="utf-8")
    other.write_text(render(make(phantom=False)), encoding="utf-8")
    write_run_info(page, RECORD)
    shown = Page(dumped(page, tmp_path)).text("dd")
    assert shown[:3] == ["20270102T030405-6", "0123456789ab", "2027-01-02 03:04 UTC"]
    assert Page(dumped(other, tmp_path)).text("dd")[:3] == [""] * 3  # the style sheet says: not known


@pytest.mark.skipif(not shutil.which("chromium"), reason="no chromium to open the page in")
def test_a_link_to_a_section_opens_it(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text(render(make(phantom=False)), encoding="utf-8")

    def opened(content: str) -> list[str]:
        sections = re.findall(r'<details class="section"( open="")?>.*?<section id="(\w+)">', content, re.S)
        return [name for is_open, name in sections if is_open]

    assert opened(dumped(page, tmp_path)) == ["result", "findings"]
    assert opened(dumped(page, tmp_path, "#audit")) == ["result", "findings", "audit"]


def test_the_step_leaves_the_run_beside_the_report(tmp_path: Path) -> None:
    validated, prepared, models, reports = write(make(phantom=True), tmp_path)
    YAML(typ="safe").dump(PARAMS, tmp_path / "params.yaml")
    command = [*forks().command("tasks.report"), "--params", "params.yaml", "--validated", validated.name]
    command += ["--prepared", prepared.name, "--models", models.name, "--reports", reports.name]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RAL_RUN_ID": "my-run"}
    environment.pop("DVC_STAGE", None)
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True)
    assert '--run-id: "my-run"; --run-commit: "no git repository"' in (reports / "run.css").read_text()
    assert "my-run" not in (reports / "report.html").read_text(encoding="utf-8")
