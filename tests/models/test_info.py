"""model.json: what the step train writes is read back, and models of earlier versions can be read."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from ral.config.model import ModelConfig
from ral.errors import UserError
from ral.models.info import ModelInfo, read_model_info
from ral.preparation import Preparation

INFO = ModelInfo(
    model=ModelConfig(backbone="test_resnet"),
    findings=("Mass", "Nodule"),
    size=64,
    pixel_mean=107.5,
    pixel_deviation=60.25,
    phantom=True,
    weights="ema",
    best_epoch=3,
    preparation=Preparation(size=64, fit="pad"),
)


def test_what_is_written_is_read_and_cannot_change(tmp_path: Path) -> None:
    INFO.write(tmp_path / "model.json")
    assert read_model_info(tmp_path) == INFO
    content = json.loads((tmp_path / "model.json").read_text())
    assert content == INFO.to_json()
    assert content["preparation"] == {"size": 64, "fit": "pad", "range": "own"}
    with pytest.raises(ValidationError):
        INFO.size = 32


def test_models_of_earlier_and_later_versions_are_read(tmp_path: Path) -> None:
    content = {name: INFO.to_json()[name] for name in ModelInfo.model_fields if name != "weights"}
    old = {name: content[name] for name in ("findings", "size", "pixel_mean", "pixel_deviation", "phantom")}
    (tmp_path / "model.json").write_text(json.dumps({**old, "model": {"backbone": "test_resnet"}, "new": 1}))
    info = read_model_info(tmp_path)
    assert (info.findings, info.preparation, info.network_code, info.weights) == (
        INFO.findings,
        None,
        {},
        None,
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[]", "not a valid model.json: missing all keys"),
        ("{", "is corrupt"),
        ('{"size": 64}', "missing model, findings, pixel_mean, pixel_deviation, phantom"),
        (json.dumps(INFO.to_json() | {"size": "large"}), "size: .*but it is 'large'"),
    ],
)
def test_the_error_says_what_is_wrong(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "model.json").write_text(content)
    with pytest.raises(UserError, match=words):
        read_model_info(tmp_path)
