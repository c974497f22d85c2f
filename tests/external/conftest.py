"""A small trained model with everything that evaluating it needs, as a project folder and as a release."""

import shutil
import tarfile
from pathlib import Path

import pytest
from conftest import ROOT, SMALL, set_params
from simulated_release import gate_decision

from ral.config.base import load
from ral.config.evaluate import EvaluateParams
from ral.files import write_json
from ral.release.bundle import build_bundle
from tasks import evaluate


@pytest.fixture(scope="session")
def project(phantom_prepared: Path, phantom_trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project folder after prepare, train and evaluate; report and card are stubs. Copy it to change it."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "data/validated").mkdir(parents=True)
    shutil.copytree(phantom_prepared, folder / "data/prepared")
    shutil.copytree(phantom_trained, folder / "models")
    shutil.copy(ROOT / "params.yaml", folder)
    set_params(folder, SMALL)
    params = load(folder / "params.yaml", EvaluateParams)
    paths = (folder / name for name in ("data/prepared", "models/logits", "baseline", "reports"))
    evaluate.run(params, *paths)
    for name in ("reports/report.html", "reports/model_card.md", "dvc.lock"):
        (folder / name).write_text(name)
    write_json(folder / "data/manifest.json", {"files": {}})
    write_json(
        folder / "data/validated/validation.json", {"passed": True, "checks": [], "profile": {"rows": 1}}
    )
    return folder


@pytest.fixture(scope="session")
def release(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release of the model, away from its project."""
    folder = tmp_path_factory.mktemp("releases") / "v0.1.0"
    folder.mkdir()
    build_bundle(project, gate_decision(), "0" * 40, folder)
    return folder


@pytest.fixture(scope="session")
def folder(small_phantom: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The 400 phantom images as single files, in two folders."""
    unpacked = tmp_path_factory.mktemp("unpacked")
    for name in ("a", "b/c"):
        (unpacked / name).mkdir(parents=True)
    with tarfile.open(small_phantom / "images_001.tar.gz") as archive:
        members = [member for member in archive.getmembers() if member.isfile()]
        for number, member in enumerate(members):
            path = unpacked / ("a", "b/c")[number % 2] / Path(member.name).name
            path.write_bytes(archive.extractfile(member).read())  # type: ignore[union-attr]
    return unpacked
