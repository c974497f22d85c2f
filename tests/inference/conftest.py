"""A small trained model with its calibration, as a project folder and as a release; images to predict."""

import tarfile
from pathlib import Path

import pytest
from simulated_release import gate_decision

from ral.inference.model import Model, load_model
from ral.release.bundle import build_bundle


@pytest.fixture(scope="session")
def project(phantom_evaluated: Path) -> Path:
    """A project folder after prepare, train and evaluate. Copy it to change it."""
    return phantom_evaluated


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
