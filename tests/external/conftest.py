"""A small trained model with everything that evaluating it needs, as a project folder and as a release."""

import tarfile
from pathlib import Path

import pytest
from simulated_release import gate_decision

from ral.release.bundle import build_bundle


@pytest.fixture(scope="session")
def project(phantom_evaluated: Path) -> Path:
    """A project folder after prepare, train and evaluate. Copy it to change it."""
    return phantom_evaluated


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
