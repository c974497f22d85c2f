"""Prepared images shared by the tests of training."""

from pathlib import Path

import pytest
from trainings import prepare_phantom


@pytest.fixture(scope="session")
def prepared(small_phantom: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 phantom images at 32 pixels; do not change it."""
    return prepare_phantom(small_phantom, tmp_path_factory.mktemp("prepared"))
