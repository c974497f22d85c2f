"""Campaigns of minutes: the default in two clones, real images, and real images whose labels belong to others."""

import io
import json
import random
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import copy_project

pytestmark = [pytest.mark.long, pytest.mark.timeout(7200)]
Run = Callable[..., subprocess.CompletedProcess[str]]


def macro_auroc(folder: Path) -> float:
    return json.loads((folder / "reports/metrics.json").read_text())["macro"]["auroc"]["value"]


def test_default_reaches_its_figure_and_two_clones_agree(run: Run, tmp_path: Path) -> None:
    clones = [copy_project(tmp_path / name / "project") for name in ("one", "another")]
    for folder in clones:
        run("dvc", "repro", "-f", cwd=folder)
        assert run("dvc", "status", cwd=folder).stdout.split() == [
            "tasks/dvc.yaml:manifest:",
            "always",
            "changed",
        ]
    assert macro_auroc(clones[0]) >= 0.85
    assert (clones[0] / "dvc.lock").read_text() == (clones[1] / "dvc.lock").read_text()


@pytest.mark.parametrize("permuted", [False, True])
def test_real_images_are_learned_and_permuted_ones_are_not(
    run: Run, real_images: Path, tmp_path: Path, permuted: bool
) -> None:
    """Permuting images among rows is the negative control: any figure above chance would be a leak."""
    root = permute(real_images, tmp_path / "images") if permuted else real_images
    folder = copy_project(tmp_path / "project")
    changes = {"root": str(root), "missing_images": "drop"}
    options = [f"-S=data.{key}={value}" for key, value in changes.items()]
    run("dvc", "exp", "run", *options, "-S=split.method=hash", cwd=folder)
    facts = json.loads((folder / "data/prepared/dataset.json").read_text())
    assert facts["left_out"] == {"no image": 97_125}
    assert "97,125" in (folder / "reports/report.html").read_text()
    if permuted:
        assert 0.45 <= macro_auroc(folder) <= 0.55
    else:
        assert macro_auroc(folder) >= 0.68


def permute(source: Path, target: Path) -> Path:
    """A copy of a data folder in which every image has the name, and so the labels, of another one."""
    target.mkdir()
    images: dict[str, bytes] = {}
    for path in sorted(source.iterdir()):
        if path.name.endswith(".tar.gz"):
            with tarfile.open(path) as tar:
                for member in tar:
                    if member.isfile():
                        images[member.name] = tar.extractfile(member).read()  # type: ignore[union-attr]
        else:
            (target / path.name).symlink_to(path)
    contents = list(images.values())
    random.Random(0).shuffle(contents)
    with tarfile.open(target / "images_001.tar.gz", "w:gz", compresslevel=1) as tar:
        for name, content in zip(images, contents, strict=True):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return target
