"""The whole chain through DVC in a fresh copy: outputs, lock file, reruns, experiments."""

import json
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from conftest import SMALL, copy_project, processes_in, set_params
from stages import stages

Run = Callable[..., subprocess.CompletedProcess[str]]
# Stages that DVC runs every time.
LOOK = ["tasks/dvc.yaml:manifest"]


def fresh(folder: Path) -> Path:
    copy_project(folder)
    set_params(folder, SMALL)
    return folder


@pytest.fixture(scope="module")
def done(chain_done: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project in which the chain has run; tests leave its outputs as they are."""
    return Path(shutil.copytree(chain_done, tmp_path_factory.mktemp("chain") / "project", symlinks=True))


def changed(folder: Path, run: Run) -> set[str]:
    """Stages that DVC would run for a reason; those that look at the data folder always run."""
    status = json.loads(run("dvc", "status", "--json", cwd=folder).stdout)
    for name in LOOK:
        assert status[name] == ["always changed"] or "changed deps" in str(status[name])
    return set(status) - set(LOOK)


def test_outputs_and_figures(done: Path, run: Run) -> None:
    metrics = json.loads((done / "reports/metrics.json").read_text())
    assert metrics["data"] == "phantom"
    for name in ("auroc", "ap"):
        figure = metrics["macro"][name]
        assert 0 < figure["low"] < figure["value"] < figure["high"] < 1
    studies = pd.read_parquet(done / "data/prepared/studies.parquet")
    assert metrics["test"]["rows"] == (studies["split"] == "test").sum()
    assert studies.groupby("patient_id")["split"].nunique().max() == 1
    report = (done / "reports/report.html").read_text()
    assert "PHANTOM" in report
    assert "not a medical device" in report
    summary = run("python", "-m", "ral.reporting.summary", cwd=done).stdout
    assert summary.startswith("PHANTOM")
    assert f"{metrics['macro']['auroc']['value']:.3f}" in summary
    assert "reports/report.html" in summary


def test_nothing_changed_is_nothing_done(done: Path, run: Run) -> None:
    before = (done / "dvc.lock").read_bytes()
    assert changed(done, run) == set()
    again = run("dvc", "repro", cwd=done).stdout
    assert re.findall("Running stage '(.*)'", again) == LOOK  # whose outputs are as they were
    assert (done / "dvc.lock").read_bytes() == before
    assert not run("git", "status", "--porcelain", cwd=done).stdout


@pytest.mark.long
def test_another_clone_gives_the_same_lock(done: Path, run: Run, tmp_path: Path) -> None:
    other = fresh(tmp_path / "elsewhere")
    run("dvc", "repro", "-f", cwd=other)
    assert (other / "dvc.lock").read_text() == (done / "dvc.lock").read_text()


@pytest.mark.parametrize(
    ("path", "stale"),
    [
        ("ral/reporting/plots.py", {"report"}),
        ("ral/evaluation/bootstrap.py", {"explain", "evaluate", "robustness", "report"}),
        ("ral/losses/ral.py", {"train"}),
        ("ral/data/images/decode.py", {"preprocess", "robustness"}),
        ("ral/data/images/shards.py", {"preprocess", "train", "features", "explain", "robustness"}),
        ("ral/explain/saliency.py", {"explain"}),
    ],
)
def test_an_edit_reruns_what_imports_it(done: Path, run: Run, path: str, stale: set[str]) -> None:
    file = done / path
    text = file.read_text()
    try:
        file.write_text(text + "# edited\n")
        found = changed(done, run)
    finally:
        file.write_text(text)
    assert found == stale


def test_bytecode_is_no_change(done: Path, run: Run) -> None:
    cache = done / "ral/data/__pycache__"
    cache.mkdir(exist_ok=True)
    (cache / "x.pyc").write_bytes(b"x")
    assert changed(done, run) == set()


def test_run_folder_holds_what_the_outputs_must_not(done: Path) -> None:
    # The stages of one `dvc repro` share a folder; another run made the manifest alone.
    path = min((done / "runs").glob("*/run.json"))
    manifest = json.loads(path.read_text())
    assert set(manifest["steps"]) == set(stages())
    assert {step["status"] for step in manifest["steps"].values()} == {"done"}
    assert manifest["commit"]
    assert manifest["machine"]["cores"]
    assert list((done / "runs").glob("*/data_docs/index.html"))


@pytest.mark.long
def test_part_of_a_real_archive(run: Run, real_images: Path, tmp_path: Path) -> None:
    """Real images through the first stages, with the counts that its owners publish; of the table alone: test_nih.py."""
    folder = fresh(tmp_path / "project")
    changes = {"data": {"root": str(real_images), "missing_images": "drop"}, "split": {"method": "hash"}}
    set_params(folder, changes)
    run("dvc", "repro", "preprocess", cwd=folder)
    validation = json.loads((folder / "data/validated/validation.json").read_text())
    facts = json.loads((folder / "data/prepared/dataset.json").read_text())
    assert (validation["rows"], validation["patients"], validation["images"]) == (112_120, 30_805, 14_995)
    assert facts["left_out"] == {"no image": 97_125}
    assert (facts["images"], facts["patients"], facts["phantom"]) == (14_995, 3_923, False)


@pytest.mark.parametrize(
    ("how", "shell"),
    [
        (signal.SIGKILL, "/bin/sh"),
        (signal.SIGTERM, "/bin/bash"),
        pytest.param(signal.SIGKILL, "/bin/bash", marks=pytest.mark.long),
        pytest.param(signal.SIGTERM, "/bin/sh", marks=pytest.mark.long),
    ],
)
def test_training_ends_with_dvc(
    done: Path, environment: dict[str, str], wait_until, tmp_path: Path, how: signal.Signals, shell: str
) -> None:
    folder = Path(shutil.copytree(done, tmp_path / "project", symlinks=True))
    set_params(folder, {"train": {"epochs": 5000}})
    dvc = subprocess.Popen(
        ["dvc", "repro", "train"], cwd=folder, env=environment | {"SHELL": shell},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    wait_until(lambda: any("ral.training" in line for line in processes_in(folder)))
    dvc.send_signal(how)
    dvc.wait()
    wait_until(lambda: not processes_in(folder))


def test_ended_step_closes_its_record_and_leaves_no_draft(
    done: Path, environment: dict[str, str], wait_until, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(done, tmp_path / "project", symlinks=True))
    set_params(folder, {"train": {"epochs": 5000}})
    step = subprocess.Popen(
        ["python", "-m", "tasks.train"], cwd=folder, env=environment | {"RAL_RUN_ID": "ended"},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    wait_until(lambda: any("ral.training" in line for line in processes_in(folder)))
    step.terminate()
    assert step.wait() == 143
    assert not processes_in(folder)
    assert not list(folder.glob(".*.draft"))
    manifest = json.loads((folder / "runs/ended/run.json").read_text())
    assert manifest["steps"]["train"]["status"].startswith("failed")
