"""A small trained model with its calibration, as a project folder and as a release; images to predict."""

import shutil
import tarfile
from pathlib import Path

import pytest
from conftest import ROOT, SMALL, Once, set_params
from simulated_release import gate_decision

from ral.config.base import load
from ral.config.evaluate import EvaluateParams
from ral.files import write_json
from ral.inference.model import Model, load_model
from ral.release.bundle import build_bundle
from tasks import evaluate


@pytest.fixture(scope="session")
def project(phantom_prepared: Path, phantom_trained: Path, once: Once) -> Path:
    """A project folder after prepare, train and evaluate; report and card are stubs. Copy it."""
    return once("project", lambda folder: evaluated(folder, phantom_prepared, phantom_trained))


def evaluated(folder: Path, prepared: Path, trained: Path) -> None:
    """Write a project folder from its prepared data and its training."""
    (folder / "data/validated").mkdir(parents=True)
    shutil.copytree(prepared, folder / "data/prepared")
    shutil.copytree(trained, folder / "models")
    shutil.copy(ROOT / "params.yaml", folder)
    set_params(folder, SMALL)
    params = load(folder / "params.yaml", EvaluateParams)
    evaluate.run(
        params, folder / "data/prepared", folder / "models/logits", folder / "baseline", folder / "reports"
    )
    for name in ("reports/report.html", "reports/model_card.md", "dvc.lock"):
        (folder / name).write_text(name)
    write_json(folder / "data/manifest.json", {"files": {}})
    write_json(
        folder / "data/validated/validation.json", {"passed": True, "checks": [], "profile": {"rows": 1}}
    )


@pytest.fixture
def release(project: Path, tmp_path: Path) -> Path:
    """A release of the model, in the registry of tmp_path/state; it is the champion."""
    folder = tmp_path / "state/releases/v0.1.0"
    folder.mkdir(parents=True)
    build_bundle(project, gate_decision(), "0" * 40, folder)
    (tmp_path / "state/champion").symlink_to("releases/v0.1.0")
    (tmp_path / "state").chmod(0o700)
    return folder


@pytest.fixture(scope="session")
def model(project: Path) -> Model:
    return load_model(project)


@pytest.fixture(scope="session")
def folder(small_phantom: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The 400 phantom images as single files."""
    unpacked = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(small_phantom / "images_001.tar.gz") as archive:
        for member in archive.getmembers():
            if member.isfile():
                (unpacked / Path(member.name).name).write_bytes(archive.extractfile(member).read())  # type: ignore[union-attr]
    return unpacked
