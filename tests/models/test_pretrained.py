"""Weights to start from: adapted, recorded, and never a pickle."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ral.config.model import ModelConfig
from ral.errors import UserError
from ral.files import sha256
from ral.models import build_model, classifier, import_timm

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def colour(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights as a hub has them: three channels, a thousand classes."""
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    torch.manual_seed(99)
    save_file(import_timm().create_model("test_resnet").state_dict(), path)
    return path


def build(pretrained: object, backbone: str = "test_resnet", seed: int = 0, **changes):
    torch.manual_seed(seed)
    config = {"backbone": backbone, "pretrained": str(pretrained), **changes}
    return build_model(ModelConfig.model_validate(config), 14)


@pytest.mark.parametrize("head", ["linear", "csra"])
def test_colour_weights_are_summed_into_one_channel(colour: Path, head: str) -> None:
    torch.manual_seed(99)
    source = import_timm().create_model("test_resnet").eval()
    model = build(colour, head=head).eval()
    assert model.weights_sha256 == sha256(colour)
    state, source_state = model.backbone.state_dict(), source.state_dict()
    assert torch.allclose(
        state["conv1.0.weight"], source_state["conv1.0.weight"].sum(1, keepdim=True), atol=1e-6
    )
    for name, tensor in state.items():
        if not name.startswith(("conv1.0.", "fc.")):
            assert torch.equal(tensor, source_state[name]), name
    image = torch.randn(1, 1, 96, 96)
    with torch.no_grad():
        assert torch.allclose(
            model.backbone.forward_features(image),
            source.forward_features(image.expand(-1, 3, -1, -1)),
            atol=1e-5,
        )
        three = build(colour, head=head, channels=3).eval()
        assert torch.equal(three.backbone.state_dict()["conv1.0.weight"], source_state["conv1.0.weight"])


def test_the_classifier_is_drawn_by_the_seed(colour: Path) -> None:
    first, repeated, different = (classifier(build(colour, seed=seed)).weight for seed in (1, 1, 2))
    assert first.shape[0] == 14
    assert torch.equal(first, repeated)
    assert not torch.equal(first, different)
    assert torch.equal(first, classifier(build("none", seed=1)).weight)


def test_the_own_model_of_an_earlier_training(tmp_path: Path) -> None:
    earlier = build("none", seed=5, head="ml_decoder", ml_decoder={"embedding": 16})
    save_file(earlier.state_dict(), tmp_path / "model.safetensors")
    later = build(tmp_path / "model.safetensors", head="csra")
    assert all(
        torch.equal(tensor, later.backbone.state_dict()[name])
        for name, tensor in earlier.backbone.state_dict().items()
    )


def test_a_copy_of_the_network_does_not_hold_the_file(colour: Path) -> None:
    assert build(colour).backbone.pretrained_cfg["state_dict"] is None


def test_a_pickle_is_refused_whatever_its_name(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "sprung",))

    path = tmp_path / "weights.safetensors"
    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(UserError, match="not a safetensors file"):
        build(path)
    torch.save({"fc.weight": torch.zeros(2)}, path)
    with pytest.raises(UserError, match="not a safetensors file"):
        build(path)
    assert not (tmp_path / "sprung").exists()


def test_weights_of_another_network_are_refused(colour: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="weights of another network"):
        build(colour, backbone="test_vit")
    with pytest.raises(UserError, match="do not fit"):
        build(colour, backbone="resnet18")
    with pytest.raises(UserError, match="no such file"):
        build(tmp_path / "none.safetensors")


def test_pretrained_weights_that_are_not_finite_are_refused(colour: Path, tmp_path: Path) -> None:
    tensors = load_file(colour)
    next(t for t in tensors.values() if t.is_floating_point()).view(-1)[0] = float("nan")
    save_file(tensors, tmp_path / "bad.safetensors")
    with pytest.raises(UserError, match=r"model\.pretrained: .*not finite"):
        build(tmp_path / "bad.safetensors")


def test_hub_asks_for_safetensors_of_the_backbone(colour: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import_timm()
    import huggingface_hub

    asked = []
    monkeypatch.setattr(
        huggingface_hub,
        "hf_hub_download",
        lambda repository, name: asked.append((repository, name)) or colour,
    )
    assert build("hub").weights_sha256 == sha256(colour)
    assert asked == [("timm/test_resnet.r160_in1k", "model.safetensors")]


def test_a_network_without_weights_on_the_hub() -> None:
    with pytest.raises(UserError, match="no pretrained weights on the hub"):
        build("hub", backbone="test_mambaout")


def test_offline_the_hub_is_an_error_for_people(tmp_path: Path) -> None:
    script = (
        "from ral.config.model import ModelConfig\n"
        "from ral.models import build_model\n"
        "from ral.errors import UserError\n"
        "try: build_model(ModelConfig(backbone='test_resnet', pretrained='hub'), 2)\n"
        "except UserError as error: print(error.retry, error)\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(
        "True model.pretrained: timm/test_resnet.r160_in1k on the Hugging Face hub:"
    )
    assert "hub is unreachable" in done.stdout
