"""examples/use_a_model.ipynb runs in a project folder, and is committed without outputs."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from conftest import ROOT

NOTEBOOK = ROOT / "examples/use_a_model.ipynb"

# Runs in the process of the cells, after the last one.
CHECK = """
assert len(table) == 8 and (table["error"] == "").all()
assert table["notice"].str.contains("PHANTOM").all()
assert probabilities.shape == (8, len(model.findings))
assert np.array_equal(logits.numpy(), table.filter(like="_logit").to_numpy(np.float32))
assert heat.shape == (model.size, model.size) and 0 <= heat.min() <= heat.max() <= 1
assert np.isclose(probabilities.loc[number, finding], np.nanmax(probabilities))
assert len(right.images) == 2
figure.savefig("figure.png")
"""


def test_the_notebook_has_no_outputs() -> None:
    notebook = json.loads(NOTEBOOK.read_text())
    assert notebook["nbformat"] == 4
    for cell in notebook["cells"]:
        assert cell.get("outputs", []) == []
        assert cell.get("execution_count") is None
        assert set(cell["metadata"]) == set()


def test_every_cell_runs(phantom_evaluated: Path, small_phantom: Path, tmp_path: Path) -> None:
    folder = tmp_path / "project"
    shutil.copytree(phantom_evaluated, folder, ignore=shutil.ignore_patterns("prepared"))
    shutil.copytree(small_phantom, folder / "data/phantom")
    (folder / "examples").mkdir()
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    script = "\n".join("".join(cell["source"]) for cell in cells)
    environment = os.environ | {"MPLBACKEND": "Agg", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", script + CHECK],
        cwd=folder / "examples", env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (folder / "examples/figure.png").stat().st_size > 1000
