"""The table at the end of a run."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ral.evaluation.results import Metrics
from ral.reporting.summary import summary

REPORT = Path("reports/report.html")
NOTHING = {"value": None, "low": None, "high": None, "findings": 0}


def content(data: str) -> dict[str, Any]:
    """A metrics.json without a single finding of the tier tail."""

    def mean(value: float, findings: int) -> dict[str, Any]:
        one = {"value": value, "low": value - 0.032, "high": value + 0.039, "findings": findings}
        return {"ap": one, "auroc": {**one, "value": value + 0.2}, "f1": one, "findings": findings}

    return {
        "data": data,
        "test": {"rows": 1200, "patients": 345},
        "macro": mean(0.412, 13),
        "micro": mean(0.512, 13),
        "cxr_lt": {},
        "interval": "bca",
        "tiers": {
            "head": mean(0.5, 1),
            "medium": mean(0.4, 12),
            "tail": {"ap": NOTHING, "auroc": NOTHING, "f1": NOTHING, "findings": 0},
        },
        "not_estimable": {"Hernia": "3 positive test images, at least 5 needed"},
        "confidence": 0.95,
        "replicates": 1000,
    }


def metrics(data: str) -> Metrics:
    return Metrics.model_validate(content(data))


def test_lines() -> None:
    lines = summary(metrics("images"), REPORT).splitlines()
    assert lines[0] == "Research software, not a medical device"
    assert lines[1].split() == ["findings", "AP", "AUROC"]
    assert [line.split()[0] for line in lines[2:6]] == ["macro", "head", "medium", "tail"]
    assert lines[2].split(maxsplit=1)[1] == "13  0.412 (0.380–0.451)  0.612 (0.380–0.451)"
    assert lines[5].split() == ["tail", "0", "not", "estimable", "not", "estimable"]
    assert lines[-1] == "report: reports/report.html"


def test_columns_line_up() -> None:
    lines = summary(metrics("images"), REPORT).splitlines()
    assert {line.index("(") for line in lines[2:5]} == {lines[2].index("(")}
    assert lines[5].index("not estimable") == lines[1].index("AP")


def test_phantom_images_are_named_first() -> None:
    first = summary(metrics("phantom"), REPORT).splitlines()[0]
    assert first == "PHANTOM DATA: synthetic images, not patients. These metrics have no clinical meaning."


@pytest.mark.parametrize("exists", [True, False])
def test_command(tmp_path: Path, exists: bool) -> None:
    file = tmp_path / "metrics.json"
    if exists:
        file.write_text(json.dumps(content("images")), encoding="utf-8")
    command = [sys.executable, "-m", "ral.reporting.summary", str(file), "somewhere/report.html"]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
    if exists:
        assert done.stdout == summary(metrics("images"), Path("somewhere/report.html")) + "\n"
    else:
        assert done.returncode == 1
        assert done.stderr == f"error: {file} does not exist. Run the pipeline first: make run\n"
