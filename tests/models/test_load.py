"""A trained network loads unchanged, or the error says what is wrong with its files."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ral.config.model import ModelConfig
from ral.errors import UserError
from ral.models import Network, build_model
from ral.models.load import load_network


def save(folder: Path, **changes: object) -> Network:
    """Write a network with random weights as the step train does; its config may name pretrained weights."""
    torch.manual_seed(1)
    config = ModelConfig.model_validate({"backbone": "test_resnet", **changes})
    network = build_model(config.model_copy(update={"pretrained": "none"}), 3)
    folder.mkdir(exist_ok=True)
    save_file(network.state_dict(), folder / "model.safetensors")
    metadata = {
        "size": 64,
        "pixel_mean": 1.0,
        "pixel_deviation": 2.0,
        "phantom": False,
        "findings": list("abc"),
    }
    (folder / "model.json").write_text(json.dumps({"model": config.model_dump(), **metadata}))
    return network


@pytest.mark.parametrize(
    "changes",
    [
        {"head": "csra", "channels": 3},
        {"head": "ml_decoder", "ml_decoder": {"embedding": 32}},
        {"pretrained": "hub"},
        {"pretrained": "gone/weights.safetensors"},
        {"gradient_checkpointing": True, "drop_path": 0.3},
        {"options": {"channels": [8, 16, 16, 24]}},
    ],
)
def test_found_as_it_was(tmp_path: Path, changes: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ral.models.pretrained._download", None)  # nothing may be downloaded
    saved = save(tmp_path, **changes)
    before = torch.get_rng_state()
    network, info = load_network(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    assert info.findings == tuple("abc")
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    images = torch.randn(2, 1, 64, 64)
    assert torch.equal(network(images), saved.eval().requires_grad_(False)(images))


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.json does not exist.*Train first"):
        load_network(tmp_path)
    save(tmp_path)
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:1000])
    with pytest.raises(UserError, match="not a valid safetensors file"):
        load_network(tmp_path)
    torch.save({"a": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="not a valid safetensors file"):
        load_network(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match=r"model\.safetensors does not exist"):
        load_network(tmp_path)


def test_weights_of_another_network(tmp_path: Path) -> None:
    save(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    name = "backbone.fc.weight"
    save_file({**tensors, name: torch.zeros(4, tensors[name].shape[1])}, path)
    with pytest.raises(UserError, match=r"1 of \d+ tensors do not match.*fc\.weight.*\(3, .*\(4, "):
        load_network(tmp_path)
    save_file({key: value for key, value in tensors.items() if key != name}, path)
    with pytest.raises(UserError, match=r"fc\.weight.*not in the file"):
        load_network(tmp_path)
    save_file({**tensors, "extra": torch.zeros(1)}, path)
    with pytest.raises(UserError, match=r"extra: not in the network expected"):
        load_network(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["backbone.fc.weight", "backbone.bn1.running_var"])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, name: str, value: float) -> None:
    save(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    name = (
        next(key for key in tensors if key.endswith(name.partition(".")[2])) if name not in tensors else name
    )
    tensors[name].view(-1)[0] = value
    save_file(tensors, path)
    with pytest.raises(UserError, match=rf"1 of \d+ values of {name} are not finite") as caught:
        load_network(tmp_path)
    assert caught.value.kind == "not_finite"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"size": None}, "missing size"),
        ({"model": {"backbone": "test_resnet", "heads": 1}}, "unknown key `heads`"),
        ({"model": {"backbone": "no_such_net"}}, "has no model `no_such_net`"),
    ],
)
def test_model_json_is_checked(tmp_path: Path, change: dict, words: str) -> None:
    save(tmp_path)
    metadata = json.loads((tmp_path / "model.json").read_text()) | change
    (tmp_path / "model.json").write_text(json.dumps({k: v for k, v in metadata.items() if v is not None}))
    with pytest.raises(UserError, match=words):
        load_network(tmp_path)
    (tmp_path / "model.json").write_text("{")
    with pytest.raises(UserError, match="corrupt"):
        load_network(tmp_path)
