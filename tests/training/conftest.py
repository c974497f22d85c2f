"""Prepared images and trainings that the tests of training share."""

from pathlib import Path

import pytest
from conftest import Once
from trainings import train


@pytest.fixture(scope="session")
def prepared(phantom_prepared: Path) -> Path:
    """400 phantom images at 32 pixels; do not change it."""
    return phantom_prepared


@pytest.fixture(scope="session")
def two_epochs(prepared: Path, once: Once) -> Path:
    """Outputs of a training with the parameters of tests/trainings.py as they are; do not change it."""
    return once("two-epochs", lambda folder: train(prepared, folder))
