"""The inputs of `robustness_inputs` as fixtures."""

from pathlib import Path

import pytest
from robustness_inputs import Sums, make_subject, write_images

from ral.config.base import load
from ral.config.evaluate import EvaluateConfig, EvaluateParams
from ral.robustness.subject import Subject

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of prepared data; do not change it."""
    return write_images(tmp_path_factory.mktemp("robustness") / "prepared")


@pytest.fixture(scope="session")
def config() -> EvaluateConfig:
    """As shipped, with fewer replicates."""
    shipped = load(ROOT / "params.yaml", EvaluateParams).evaluate
    return shipped.model_copy(update={"replicates": 200})


@pytest.fixture
def subject(prepared: Path, config: EvaluateConfig) -> Subject:
    """The subject of an audit of `Sums`."""
    return make_subject(prepared, Sums(), config)
