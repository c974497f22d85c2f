"""Patients leave: the next run has nothing of them, the rest is listed and removed, and the models are compared."""

import io
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest
from conftest import SMALL, copy_project, set_params
from excluded import FINDINGS, LEAVING, data, texts, write_images
from nights import Clinic
from simulated_release import gate_decision

from ral.release.bundle import build_bundle
from ral.release.ledger import Forgetting, Ledger, Pruning
from ral.release.registry import Registry

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_images(tmp_path / "delivered")
    return tmp_path / "delivered"


@pytest.fixture
def project(tmp_path: Path, root: Path) -> Path:
    folder = copy_project(tmp_path / "project")
    section = data(root).model_dump(exclude={"drift", "root"}, exclude_unset=True)
    changes = {
        "data": section, "split": {"method": "stratified"}, "explain": {"show_images": False}, "phantom": SMALL["phantom"]
    }  # fmt: skip
    set_params(folder, SMALL | changes)
    return folder


def found(text: str) -> list[str]:
    return [name for name in LEAVING if name in text]


def register(project: Path, state: Path, run: Run) -> str:
    """Make the model of the project the champion."""
    registry = Registry(state)
    run("git", "add", "-A", cwd=project)
    run("git", "-c", "user.name=a", "-c", "user.email=a@b.org", "commit", "-qm", "run", cwd=project)
    run("git", "push", "-q", str(registry.repository), "HEAD:refs/heads/nightly", cwd=project)
    commit = run("git", "rev-parse", "HEAD", cwd=project).stdout.strip()
    draft = registry.folder / ".draft"
    draft.mkdir()
    build_bundle(project, gate_decision(), commit, draft)
    version = registry.register(commit, draft)
    registry.promote(version, "somebody", "because")
    return version


@pytest.mark.long
def test_patients_leave(project: Path, root: Path, tmp_path: Path, run: Run) -> None:
    state = tmp_path / "state"
    here = {"RAL_DATA_ROOT": str(root), "RAL_STATE_DIR": str(state)}
    before = run("dvc", "repro", cwd=project, **here).stdout
    assert found(before)  # a warning names an image that two people have
    outputs = ("data/validated", "data/prepared", "data/manifest.json", "models/logits")
    for name in outputs:
        assert found(texts(project / name) if (project / name).is_dir() else (project / name).read_text()), (
            name
        )
    run("python", "-m", "ral.data.baseline", "split", cwd=project, **here)
    old = pd.read_parquet(project / "data/prepared/split.parquet").set_index("patient_id")["split"]
    old_runs = set((project / "runs").iterdir())
    assert register(project, state, run) == "v0.1.0"

    # They leave.
    (tmp_path / "leaving.txt").write_text("\n".join(LEAVING))
    set_params(project, {"data": {"exclude_patients": str(tmp_path / "leaving.txt")}})
    forget = ("python", "-m", "ral.release", "forget")
    refusal = run(*forget, "--prune", "--reason", "consent", cwd=project, code=1, **here).stdout
    assert "Run the pipeline first" in refusal
    after = run("dvc", "repro", cwd=project, **here).stdout
    assert "6 of 6 patients are in the table; 10 rows excluded" in after
    assert found(after) == []
    (new_run,) = set((project / "runs").iterdir()) - old_runs
    for name in ("data", "models", "reports", new_run.relative_to(project)):
        assert found(texts(project / name)) == [], name
    lock = (project / "dvc.lock").read_text()
    assert found(lock) == []
    assert "leaving" not in lock
    new = pd.read_parquet(project / "data/prepared/split.parquet").set_index("patient_id")["split"]
    assert new.equals(old[~old.index.isin(LEAVING)])

    # The models are compared, and the ledger has the result.
    told = run(*forget, "--reason", "consent", "--by", "Ada", cwd=project, **here).stdout
    assert "membership attack on the retrained model, AUROC: 0." in told
    assert found(told) == []
    entry = Ledger(state).entries()[-1].event
    assert isinstance(entry, Forgetting)
    assert (entry.version, entry.by, entry.reason) == ("v0.1.0", "Ada", "consent")
    trained = old[old.index.isin(LEAVING)] == "train"
    assert entry.patients == trained.sum() > 0
    assert found((state / "ledger.jsonl").read_text()) == []

    # What is left is listed, then removed on request; the champion only after another one is there.
    listed = run(*forget, "--list", cwd=project, **here).stdout
    for what in (
        "record of a run",
        "accepted baseline",
        "v0.1.0, the champion",
        "DVC's cache",
        "history of git",
    ):
        assert what in listed
    assert found(listed) == []
    assert found(texts(project / ".dvc/cache"))
    assert register(project, state, run) == "v0.2.0"
    source = texts(root)
    told = run(*forget, "--prune", "--reason", "consent", cwd=project, **here).stdout
    assert isinstance(Ledger(state).entries()[-1].event, Pruning)
    assert "bundle of the release v0.1.0" in told
    for folder in (project / ".dvc/cache", state / "releases", state / "images", project / "runs"):
        assert found(texts(folder)) == [], folder
    assert found(texts(project / "baseline")) == []
    assert texts(root) == source
    # Only what a person must do is left, and the run is complete as it was.
    left = run(*forget, "--list", cwd=project, **here).stdout.splitlines()[:-1]
    assert {line.split()[0] for line in left} == {"manual"}
    run("dvc", "checkout", cwd=project, **here)
    status = run("dvc", "status", "-c", cwd=project, code=None, **here).stdout
    assert "missing" not in status
    assert new.equals(
        pd.read_parquet(project / "data/prepared/split.parquet").set_index("patient_id")["split"]
    )
    assert len(pd.read_parquet(project / "models/logits/test.parquet").columns) == 1 + len(FINDINGS)


@pytest.fixture
def clinic(
    tmp_path: Path, environment: dict[str, str], run: Run, wait_until: Callable[..., None]
) -> Iterator[Clinic]:
    made = Clinic(tmp_path / "clinic", environment, run, wait_until, images=1200)
    try:
        made.open()
        yield made
    finally:
        made.close()


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_patients_leave_between_two_nights(clinic: Clinic, tmp_path: Path) -> None:
    training = {"train__epochs": 3, "train__learning_rate": 3e-3}
    clinic.hospital.deliver(0.9)
    ended = clinic.night(**training)
    assert ended["type"] == "COMPLETED", ended
    table = pd.read_csv(clinic.hospital.folder / "Data_Entry_2017.csv", index_col=False, dtype=str)
    leaving = table["Patient ID"].unique()[3::40].tolist()
    images = table.loc[table["Patient ID"].isin(leaving), "Image Index"].tolist()
    workspace, state = clinic.state / "workspaces/nightly", clinic.state
    before = pd.read_parquet(workspace / "data/prepared/split.parquet").set_index("patient_id")["split"]
    assert set(leaving) < set(before.index)
    old_runs = set((workspace / "runs").iterdir())

    (tmp_path / "leaving.txt").write_text("\n".join(leaving))
    changes = training | {"data__exclude_patients": str(tmp_path / "leaving.txt")}
    asked = clinic.start_night(**changes)
    ended = clinic.wait_for(asked)
    assert ended["type"] == "COMPLETED", ended
    assert ended["name"] != "NoChanges"
    new_runs = set((workspace / "runs").iterdir()) - old_runs
    folders = [workspace / name for name in ("data", "models", "reports", "baseline")]
    folders += [state / "releases/v0.2.0", *new_runs]
    for folder in folders:
        written = texts(folder)
        assert [name for name in images if name in written] == [], folder
    assert [name for name in images if name in clinic.lines(asked)] == []
    after = pd.read_parquet(workspace / "data/prepared/split.parquet").set_index("patient_id")["split"]
    assert after.equals(before[~before.index.isin(leaving)])
    for folder in (workspace / "baseline", state / "releases/v0.2.0"):
        assert not pd.read_parquet(folder / "split.parquet")["patient_id"].isin(leaving).any()
    recorded = subprocess.run(
        ["git", "-C", str(state / "registry.git"), "show", "nightly:baseline/split.parquet"],
        check=True, capture_output=True,
    ).stdout  # fmt: skip
    assert not pd.read_parquet(io.BytesIO(recorded))["patient_id"].isin(leaving).any()
    # The same list again is nothing new.
    assert clinic.night(**changes)["name"] == "NoChanges"
    clinic.tidy()
