"""Experiments by name: their logits come from DVC's cache, whatever is checked out."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

ROOT = Path(__file__).parent.parent.parent

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory, run: Run) -> Path:
    """A repository with the same studies at four commits: one, two (other logits), three (another split), formula."""
    folder = tmp_path_factory.mktemp("experiments")
    generator = np.random.default_rng(0)
    rows = 600
    label = (generator.random(rows) < 0.3).astype(float)
    studies = pd.DataFrame(
        {
            "image_id": [f"image{n}" for n in range(rows)],
            "patient_id": [f"p{n // 2}" for n in range(rows)],
            "split": np.repeat(["train", "val", "test"], rows // 3),
            "Mass": label,
        }
    )
    shutil.copy2(ROOT / "params.yaml", folder / "params.yaml")
    for command in (
        "git init -q",
        "git config user.name test",
        "git config user.email t@example.org",
        "dvc init -q",
    ):
        run(*command.split(), cwd=folder)
    (folder / "data/prepared").mkdir(parents=True)
    (folder / "models/logits").mkdir(parents=True)
    for tag, spread in (("one", 1.0), ("two", 3.0), ("three", 3.0), ("formula", 3.0)):
        table = studies if tag != "three" else studies.assign(split=studies["split"][::-1].to_numpy())
        table.to_parquet(folder / "data/prepared/studies.parquet")
        logits = studies[["image_id"]].assign(Mass=2 * label + generator.normal(0, spread, size=rows))
        logits = logits.rename(columns={"Mass": "=1+1"} if tag == "formula" else {})
        for split in ("val", "test"):
            logits[table["split"] == split].to_parquet(folder / f"models/logits/{split}.parquet")
        run("dvc", "add", "-q", "data/prepared/studies.parquet", "models/logits", cwd=folder)
        run("git", "add", "-A", cwd=folder)
        run("git", "commit", "-qm", tag, cwd=folder)
        run("git", "tag", tag, cwd=folder)
    return folder


def compare(fork: Run, folder: Path, *arguments: str, code: int = 0) -> str:
    return fork("flows.experiments", *arguments, cwd=folder, code=code).stdout


def test_experiments_are_compared_by_name(repository: Path, fork: Run) -> None:
    printed = compare(fork, repository, "one", "two", "--out", str(repository / "out.csv"))
    assert "AUROC: two − one" in printed
    table = pd.read_csv(repository / "out.csv")
    row = table[(table["metric"] == "auroc") & (table["level"] == "macro")].iloc[0]
    assert row["high"] < 0
    assert row["p_holm"] < 0.01


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["one", "three"], "prepared differently"),
        (["one", "nobody"], "nobody: no experiment, branch or commit"),
        (["one", "one"], "named twice"),
        (["one"], "at least two"),
        (["one", "formula"], "formula: the column '=1+1' would be a formula"),
    ],
)
def test_what_cannot_be_compared_is_said(
    repository: Path, fork: Run, arguments: list[str], words: str
) -> None:
    printed = compare(fork, repository, *arguments, code=1)
    assert printed.startswith("error: ")
    assert words in printed


@pytest.mark.parametrize("lost", ["outputs", "cache"])
def test_a_branch_that_was_never_run_is_one_message(
    repository: Path, run: Run, fork: Run, tmp_path: Path, lost: str
) -> None:
    """Its commit names no outputs; or it names some that were made on another machine."""
    folder = Path(shutil.copytree(repository, tmp_path / "project", symlinks=True))
    run("git", "checkout", "-qb", "main", cwd=folder)
    if lost == "outputs":
        run("git", "rm", "-q", "models/logits.dvc", cwd=folder)
        run("git", "commit", "-qm", "not run", cwd=folder)
    else:
        shutil.rmtree(folder / ".dvc/cache/files/md5")
    printed = compare(fork, folder, "main", "one" if lost == "outputs" else "workspace", code=1)
    assert len(printed.splitlines()) == 1, printed
    assert printed.startswith("error: main: DVC has no ")
    assert "never run here" in printed
    assert "write workspace in its place" in printed


def test_a_workspace_without_a_run_says_how_to_run(repository: Path, fork: Run, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(repository, tmp_path / "project", symlinks=True))
    shutil.rmtree(folder / "models/logits")
    (folder / "models/logits.dvc").unlink()
    printed = compare(fork, folder, "workspace", "one", code=1)
    assert printed == (
        "error: workspace: DVC has no models/logits/test.parquet for it. Run the pipeline first: make run.\n"
    )
