"""Each source's small folder through the whole chain to a report."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import shipped
from conftest import ROOT, SMALL, set_params

Run = Callable[..., subprocess.CompletedProcess[str]]

# Each of these reads another layout; the other label sets of MIMIC differ in their columns only.
SOURCES = [
    "chexpert",
    "mimic",
    "cxr_lt_2024_task1",
    "padchest",
    "cxr_lt_2026",
    "vindr",
    "chestmnist",
    "table",
]


@pytest.mark.long
@pytest.mark.parametrize("name", SOURCES)
def test_source_to_report(run: Run, tmp_path: Path, name: str) -> None:
    section = shipped.write(name, tmp_path / "images")
    folder = tmp_path / "project"
    folder.mkdir()
    shutil.copy(ROOT / "params.yaml", folder)
    method = "official" if name in shipped.OFFICIAL else "stratified"
    findings = section.pop("findings", None)
    table = section.pop("table", None)
    set_params(
        folder, SMALL | {"data": section | {"findings": findings}, "split": {"method": method, "val": 0.2}}
    )
    if table:
        findings = ["Effusion", "Cardiomegaly"]
        set_params(folder, {"data": {"findings": findings, "source": "table", "table": table}})
    for step in ("validate", "preprocess", "train", "explain", "evaluate", "robustness", "report"):
        run("python", "-m", f"tasks.{step}", cwd=folder, PYTHONPATH=str(ROOT))
    report = (folder / "reports/report.html").read_text()
    validation = json.loads((folder / "data/validated/validation.json").read_text())
    assert validation["rows"] == 240
    assert "not a medical device" in report
    findings = json.loads((folder / "data/prepared/dataset.json").read_text())["findings"]
    assert all(finding.replace("&", "&amp;") in report for finding in findings)
    if name in ("vindr", "chestmnist"):
        assert "patients are known" in report
