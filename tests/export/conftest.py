"""A project folder after a run, which the tests of the exports share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from untrained import write_project


@pytest.fixture
def project(tmp_path: Path) -> Callable[..., Path]:
    """Make a project folder whose network has the given config."""

    def make(fit: str = "stretch", **model: Any) -> Path:
        return write_project(tmp_path / "project", fit, **model)

    return make
