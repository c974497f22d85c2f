"""The user's own network: built, checked, loaded with weights, and released without its code."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from own_classes import NETWORK, write_classes
from safetensors.torch import save_file

from ral.config.model import ModelConfig
from ral.errors import UserError
from ral.explain.saliency import Choice, choose_method, grad_cam
from ral.models import build_model, classifier, reset_classifier
from ral.models.custom import check_network
from ral.models.groups import parameter_groups
from ral.models.load import load_network
from ral.user_code import files_in_use


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A project with the files of the page; modules that are imported from it are forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    write_classes(tmp_path)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name == "own" or name.startswith(("own.", "net_")):
            del sys.modules[name]


def config(**changes: object) -> ModelConfig:
    return ModelConfig.model_validate({"backbone": NETWORK, **changes})


def test_the_network_of_the_page_works_as_one_of_timm() -> None:
    network = build_model(config(options={"width": 8}, channels=3), 4)
    check_network(network, config(), 4, 32)
    assert network.training
    assert network(torch.zeros(2, 1, 32, 32)).shape == (2, 4)
    before = classifier(network).weight.clone()
    reset_classifier(network, 1)
    assert not torch.equal(classifier(network).weight, before)
    names = [id(p) for group in parameter_groups(network, 0.05, 1e-3, 1.0) for p in group["params"]]
    assert sorted(names) == sorted(map(id, network.parameters()))
    network.eval().requires_grad_(False)
    assert choose_method(network, "auto", torch.zeros(1, 1, 32, 32)) == Choice("grad_cam")
    assert grad_cam(network, torch.rand(2, 1, 32, 32), 1).shape == (2, 8, 8)


def test_layer_decay_needs_the_layers() -> None:
    with pytest.raises(UserError, match=r"model\.layer_decay: SmallNet has no method group_matcher"):
        parameter_groups(build_model(config(), 4), 0.05, 1e-3, 0.8)


def test_gradient_checkpointing_needs_its_method() -> None:
    with pytest.raises(
        UserError, match=r"model\.gradient_checkpointing: own\.nets:SmallNet does not support it"
    ):
        build_model(config(gradient_checkpointing=True), 4)


BODY = """
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self, in_chans, num_classes):
        super().__init__()
        self.last = nn.Linear(in_chans, num_classes)
        {init}
    def get_classifier(self):
        return {classifier}
    def forward(self, images):
        logits = self.last(images.mean(dim=(2, 3)))
        return {output}
"""

# Rest of __init__, what get_classifier returns, what forward returns, and the message.
WRONG = {
    "too many outputs": ("", "self.last", "logits[:, :2]", r"returns \(2, 2\) for 2 images, instead of logits of shape \(2, 3\)"),
    "a map": ("", "self.last", "images", r"returns \(2, 1, 32, 32\) for 2 images"),
    "several outputs": ("", "self.last", "(logits, logits)", "returns tuple for 2 images"),
    "not finite": ("", "self.last", "logits / 0", "not finite"),
    "a fixed size": ("", "self.last", "logits + images.view(-1, 64 * 64)", r"fails on 2 images of 32 × 32 pixels: .*net_\d+\.py, line 13: RuntimeError"),
    "no last layer": ("", "None", "logits", r"needs a method get_classifier\(\)"),
    "an exception": ("raise ValueError('no')", "self.last", "logits", r"cannot be built with .*line 8: ValueError: no"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_network_is_refused(project: Path, name: str) -> None:
    init, last, output, words = WRONG[name]
    module = f"net_{list(WRONG).index(name)}"
    (project / f"{module}.py").write_text(BODY.format(init=init, classifier=last, output=output))
    own = config(backbone=f"{module}:Net")
    with pytest.raises(UserError, match=words) as caught:
        check_network(build_model(own, 3), own, 3, 32)
    assert str(caught.value).startswith("model.backbone")


def test_an_option_that_the_class_does_not_have() -> None:
    with pytest.raises(UserError, match=r"model\.options: .*unexpected keyword argument 'depth'"):
        build_model(config(options={"depth": 3}), 4)


def test_pretrained_weights_of_an_own_network(project: Path) -> None:
    first = build_model(config(), 4)
    save_file(first.state_dict(), project / "first.safetensors")
    second = build_model(config(pretrained="first.safetensors"), 7)  # other findings: the classifier is new
    assert torch.equal(second.backbone.features[0].weight, first.backbone.features[0].weight)
    assert second.weights_sha256
    with pytest.raises(UserError, match=r"does not fit SmallNet: features\.0\.weight needs .*\(8, 1, 3, 3\)"):
        build_model(config(pretrained="first.safetensors", options={"width": 8}), 4)


def released(project: Path) -> Path:
    """A folder with a model as the step train writes it."""
    folder = project / "released"
    folder.mkdir()
    save_file(build_model(config(), 3).state_dict(), folder / "model.safetensors")
    params = {"model": config().model_dump(), "loss": {"name": "ral"}}
    metadata = {
        "model": params["model"], "findings": list("abc"), "size": 32, "pixel_mean": 1.0, "pixel_deviation": 2.0,
        "phantom": False, "network_code": files_in_use(params)["network"],
    }  # fmt: skip
    (folder / "model.json").write_text(json.dumps(metadata))
    return folder


def test_a_released_model_loads_with_the_code_of_its_training_only(project: Path) -> None:
    folder = released(project)
    network, _ = load_network(folder)
    assert network(torch.zeros(1, 1, 32, 32)).shape == (1, 3)
    file = project / "own/nets.py"
    file.write_text(file.read_text() + "\nprint('this runs')\n")
    with pytest.raises(
        UserError, match=r"^own/nets\.py: not the code that this model was trained with"
    ) as caught:
        load_network(folder)
    assert "Check out the commit of the training" in str(caught.value)


def test_nothing_is_imported_from_a_model(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if the folder of a model has the file that the class is named after."""
    folder = released(project)
    (project / "own").rename(folder / "own")
    for name in [name for name in sys.modules if name == "own" or name.startswith("own.")]:
        del sys.modules[name]
    with pytest.raises(
        UserError, match=r"there is no file own/nets\.py in the project folder .*weights only"
    ):
        load_network(folder)
    assert "own.nets" not in sys.modules


def test_a_model_that_names_code_without_its_hash_is_refused(project: Path) -> None:
    folder = released(project)
    metadata = json.loads((folder / "model.json").read_text())
    del metadata["network_code"]
    (folder / "model.json").write_text(json.dumps(metadata))
    with pytest.raises(UserError, match="not the code that this model was trained with"):
        load_network(folder)
