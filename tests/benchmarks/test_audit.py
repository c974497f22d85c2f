"""The section of RESULTS.md on changed images, shortcuts and attacks."""

import shutil
from pathlib import Path

import pandas as pd
from conftest import ROOT

from benchmarks.study.audit import audit


def test_the_audit_has_the_numbers_of_its_tables(tmp_path: Path) -> None:
    """The committed tables of the audit of real images; a folder that lacks one has no section."""
    for path in (ROOT / "docs/results").glob("robustness*.csv"):
        shutil.copy(path, tmp_path)
    lines = audit(tmp_path)
    table = pd.read_csv(tmp_path / "robustness.csv").set_index(["shift", "name", "metric"])
    for shift in table.index.unique("shift"):
        (line,) = [line for line in lines if line.startswith(f"| `{shift}` |")]
        cells = [cell.strip() for cell in line.split("|")[2:-1]]
        assert cells[0] == f"{table.loc[(shift, 'macro', 'ap'), 'value']:.3f}"
        assert cells[-1] == f"{table.loc[(shift, 'macro', 'calls'), 'value']:,.0f}"
    assert sum(line.startswith("| view |") for line in lines) == 1
    assert sum(line.startswith("| age |") for line in lines) == 5
    (tmp_path / "robustness_within.csv").unlink()
    assert audit(tmp_path) == ["Not run."]
