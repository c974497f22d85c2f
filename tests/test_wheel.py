"""The wheel in an environment of its own, with the base dependencies and no extra: what it can do there.

`base_python` has the package installed as a user would; run commands with it in a folder that is not this checkout.
"""

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from base_install import base_requirements, install, new_environment, own_environment
from conftest import ROOT
from PIL import Image
from untrained import write_project

from ral.config.data import PhantomConfig
from ral.extras import EXTRAS, missing
from ral.inference.predict import SOME_BAD, main
from ral.losses import build_loss
from ral.phantom.population import draw_population
from ral.phantom.signs import draw_image

pytestmark = pytest.mark.long

# Modules of the package that need an extra, by the start of their names; everything else works without.
NEED_EXTRAS = {
    "ral.compute": "data",
    "ral.data.prepare": "data",
    "ral.data.images.pack": "data",
    "ral.data.validation": "data",
    "ral.reporting": "report",
    "ral.explain.gallery": "report",
    # Imported on a GPU only, where torch brings Triton.
    "ral.losses.kernel": "triton",
}


@pytest.fixture(scope="module")
def base_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of a new environment with the wheel and its base dependencies."""
    python = new_environment(tmp_path_factory.mktemp("base") / "venv", base_requirements())
    install(python, wheel)
    return python


@pytest.fixture
def run_base(base_python: Path, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a program of the base environment (`python` or `ral`) in an empty folder; it must exit with `code`."""

    def run(program: str, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [base_python.parent / program, *arguments],
            cwd=tmp_path, env=own_environment() | {"XDG_STATE_HOME": str(tmp_path / "state")},
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == code, f"exit code {done.returncode}:\n{done.stdout}{done.stderr}"
        return done

    return run


def test_every_module_can_be_imported_or_needs_an_extra(run_base) -> None:
    script = (
        "import importlib, json, pkgutil, ral\n"
        "lacking = {}\n"
        "for module in pkgutil.walk_packages(ral.__path__, 'ral.', onerror=lambda name: None):\n"
        "    if module.name.endswith('__main__'): continue\n"
        "    try: importlib.import_module(module.name)\n"
        "    except ModuleNotFoundError as error: lacking[module.name] = error.name\n"
        "print(json.dumps([ral.__file__, lacking]))"
    )
    file, lacking = json.loads(run_base("python", "-c", script).stdout.splitlines()[-1])
    assert ROOT not in Path(file).parents
    for module, absent in lacking.items():
        extra = next((extra for start, extra in NEED_EXTRAS.items() if module.startswith(start)), None)
        assert extra is not None, f"{module} needs {absent}, which is no base dependency"
        assert absent.split(".")[0] in (*EXTRAS.get(extra, ()), extra), (module, absent)
    assert {"ral.data.prepare", "ral.reporting.plots"} <= lacking.keys()


def test_ral_is_computed(run_base) -> None:
    script = (
        "import torch; from ral.losses import build_loss\n"
        "logits = torch.linspace(-8, 8, 28).reshape(2, 14).requires_grad_()\n"
        "loss = build_loss('ral')(logits, (torch.arange(28).reshape(2, 14) % 3 == 0).float())\n"
        "loss.backward(); print(loss.item().hex(), logits.grad.abs().sum().item().hex())"
    )
    logits = torch.linspace(-8, 8, 28).reshape(2, 14).requires_grad_()
    loss = build_loss("ral")(logits, (torch.arange(28).reshape(2, 14) % 3 == 0).float())
    loss.backward()
    shown = run_base("python", "-c", script).stdout.split()
    assert shown == [loss.item().hex(), logits.grad.abs().sum().item().hex()]
    assert loss.item() > 0


def test_help_and_version(run_base) -> None:
    assert "commands:" in run_base("ral", "--help").stdout
    assert run_base("ral", "--version").stdout.startswith("ral 0.")


def test_a_parameter_file_is_checked(run_base, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    assert "params.yaml is valid" in run_base("ral", "config", "check").stdout
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text().replace("title:", "titel:"))
    assert "Did you mean `title`?" in run_base("ral", "config", "check", code=1).stderr
    assert json.loads(run_base("ral", "config", "schema").stdout)["type"] == "object"


def test_the_doctor_finds_nothing_to_mend(run_base) -> None:
    lines = run_base("ral", "doctor").stdout.splitlines()
    assert any(line.split()[:2] == ["OK", "packages"] for line in lines)
    (train,) = [line for line in lines if " extra train " in line]
    assert train == f"{'OK':<8} {'extra train':<18} not installed, optional: pip install 'ral[train]'"
    assert not [line for line in lines if line.startswith("ERROR")]


def test_what_needs_an_extra_or_a_project_folder_says_so(run_base) -> None:
    shown = run_base("ral", "release", "list", code=1).stderr
    assert "needs the extra `pipeline` (gto is not installed)" in shown
    assert "pip install 'ral[pipeline]'" in shown
    for name in ("run", "compare"):
        assert "clone the repository" in run_base("ral", name, code=1).stderr


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three phantom images and a file that is cut off."""
    folder = tmp_path_factory.mktemp("images")
    for number, image in enumerate(
        draw_population(PhantomConfig(images=200, size=96, floor=0.01, seed=7))[:3]
    ):
        Image.fromarray(draw_image(image, 96, 7)).save(folder / f"{number}.png")
    (folder / "cut.png").write_bytes((folder / "0.png").read_bytes()[:500])
    return folder


def test_prediction_is_that_of_the_repository(run_base, images: Path, tmp_path: Path) -> None:
    project, here = write_project(tmp_path / "project"), tmp_path / "here.csv"
    assert main([str(images), "--model", str(project), "-o", str(here)]) == SOME_BAD
    done = run_base("ral", "predict", str(images), "--model", "project", "-o", "wheel.csv", code=SOME_BAD)
    assert "1 of them have no result" in done.stderr
    assert (tmp_path / "wheel.csv").read_bytes() == here.read_bytes()
    table = pd.read_csv(here)
    assert table["image"].tolist() == ["0.png", "1.png", "2.png", "cut.png"]
    assert table["error"].notna().tolist() == [False, False, False, True]
    assert table["Effusion_probability"].nunique() == 3


@pytest.mark.parametrize("kind", ["timm", "torch"])
def test_an_export_predicts_as_its_model(kind: str, run_base, images: Path, tmp_path: Path) -> None:
    write_project(tmp_path / "project")
    run_base("ral", "export", kind, "--model", "project", "-o", "exported")
    tables = []
    for model in ("project", "exported"):
        run_base("ral", "predict", str(images), "--model", model, "-o", f"{model}.csv", code=SOME_BAD)
        tables.append(pd.read_csv(tmp_path / f"{model}.csv").drop(columns="model"))
    assert tables[0].equals(tables[1])


def test_onnx_needs_its_extra(run_base, tmp_path: Path) -> None:
    write_project(tmp_path / "project")
    shown = run_base("ral", "export", "onnx", "--model", "project", "-o", "exported", code=1).stderr
    assert "pip install 'ral[onnx]'" in shown
    assert not (tmp_path / "exported").exists()


@pytest.mark.skipif(bool(missing("onnx")), reason="needs the extra onnx")
def test_an_onnx_export_predicts_as_its_model(wheel: Path, images: Path, tmp_path: Path) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    python = new_environment(tmp_path / "venv", [*base_requirements(), *extras["onnx"]])
    install(python, wheel)
    write_project(tmp_path / "project")
    ral = [python.parent / "ral"]
    for arguments, code in (
        (["export", "onnx", "--model", "project", "-o", "exported"], 0),
        (["predict", images, "--model", "project", "-o", "project.parquet"], SOME_BAD),
        (["predict", images, "--model", "exported", "-o", "exported.parquet"], SOME_BAD),
    ):
        done = subprocess.run(
            [*ral, *arguments], cwd=tmp_path, env=own_environment(), capture_output=True, text=True
        )
        assert done.returncode == code, done.stderr
    one, two = (pd.read_parquet(tmp_path / f"{name}.parquet") for name in ("project", "exported"))
    numbers = [name for name in one if name.endswith(("_probability", "_logit"))]
    np.testing.assert_allclose(one[numbers].astype(float), two[numbers].astype(float), rtol=0, atol=1e-4)


# Tests that need no extra: parameters, losses, models, evaluation, decoding.
WITHOUT_EXTRAS = (
    "tests/config/test_config.py", "tests/data/images/test_decode.py", "tests/data/test_dataset.py", "tests/evaluation",
    "tests/losses/test_losses.py", "tests/losses/test_reference.py", "tests/models",
)  # fmt: skip


@pytest.mark.timeout(7200)
def test_the_lower_bounds_are_enough(tmp_path: Path) -> None:
    """The other end of the ranges, constraints.txt, is what all other tests run with."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv/bin/python"
    oldest = [re.sub(r">=([\d.]+)$", r"==\1", line) for line in base_requirements()]
    assert all("==" in line for line in oldest)
    index = ["--extra-index-url", os.environ["TORCH_INDEX"]] if os.environ.get("TORCH_INDEX") else []
    done = subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "--no-cache-dir", *index, *oldest, "hypothesis", "pytest", "pytest-timeout"],
        capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode and re.search("connection|name resolution|timed out", done.stderr, re.IGNORECASE):
        pytest.skip(f"the package index does not answer: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    tests = subprocess.run(
        [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *WITHOUT_EXTRAS],
        cwd=ROOT, env=own_environment() | {"PYTHONDONTWRITEBYTECODE": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert tests.returncode == 0, tests.stdout[-5000:]
