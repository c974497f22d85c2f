"""Tests see no GPU, nor does what they start, unless `pytest -m gpu` asks for it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

TESTS = """
import os, subprocess, sys
import pytest

def visible():
    code = "import os; print(os.environ.get('CUDA_VISIBLE_DEVICES'))"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip()

def test_of_a_cpu(environment):
    assert visible() == environment["CUDA_VISIBLE_DEVICES"] == ""

@pytest.mark.gpu
def test_of_a_gpu():
    raise AssertionError("there is no GPU 99")
"""


@pytest.mark.parametrize(
    ("options", "summary", "reason"),
    [
        ((), "1 passed, 1 skipped", "pytest -m gpu"),
        pytest.param(
            ("-m", "gpu"), "1 skipped, 1 deselected", "torch finds no GPU here", marks=pytest.mark.long
        ),
    ],
)
def test_gpus_are_for_the_tests_that_ask_for_them(
    tmp_path: Path, options: tuple[str, ...], summary: str, reason: str
) -> None:
    (tmp_path / "test_both.py").write_text(TESTS)
    command = [
        sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "-p", "conftest",
        "-c", str(ROOT / "pyproject.toml"), *options, str(tmp_path),
    ]  # fmt: skip
    paths = f"{ROOT / 'tests'}{os.pathsep}{ROOT}"
    done = subprocess.run(
        command,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "99", "PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert summary in done.stdout
    assert reason in done.stdout
