"""The network: shapes, gradients, saving, layers' learning rates, checkpointing."""

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import nn

from ral.config.model import ModelConfig
from ral.errors import UserError
from ral.models import Network, build_model, classifier, import_timm, positions, reset_classifier
from ral.models.groups import parameter_groups

# Convolutions, a class token, register-free tokens, channels last, and a head with layers of its own.
BACKBONES = [
    "test_resnet",
    "test_convnext",
    "test_efficientnet",
    "test_vit",
    "test_vit_relpos",
    "test_mambaout",
]
HEADS = ["linear", "ml_decoder", "csra"]
FINDINGS = 14


def network(backbone: str = "test_resnet", findings: int = FINDINGS, seed: int = 0, **changes) -> Network:
    torch.manual_seed(seed)
    changes.setdefault("ml_decoder", {"embedding": 32})
    return build_model(ModelConfig.model_validate({"backbone": backbone, **changes}), findings)


def images(count: int = 2) -> torch.Tensor:
    return torch.randn(count, 1, 160, 160, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_classifier_computes_in_float32(backbone: str, head: str) -> None:
    model = network(backbone, head=head).eval()
    model.use_bfloat16 = True
    inputs: list[torch.Tensor] = []
    part = classifier(model)
    part.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
    with torch.no_grad():
        logits = model(images(8))
        (features,) = inputs
        assert logits.dtype == torch.float32
        assert torch.equal(logits, part(features.float()))
        assert not torch.equal(logits, logits.bfloat16().float())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_backbone_takes_every_head(backbone: str, head: str, channels: int, tmp_path: Path) -> None:
    model = network(backbone, head=head, channels=channels)
    logits = model(images())
    assert logits.shape == (2, FINDINGS)
    logits.square().sum().backward()
    without = [
        name for name, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()
    ]
    assert without == []
    assert all(p.grad.abs().sum() > 0 for p in classifier(model).parameters() if p.ndim > 1)
    save_file(
        {name: t.contiguous() for name, t in model.state_dict().items()}, tmp_path / "model.safetensors"
    )
    again = network(backbone, seed=1, head=head, channels=channels)
    again.load_state_dict(load_file(tmp_path / "model.safetensors"))
    with torch.no_grad():
        assert torch.equal(model.eval()(images()), again.eval()(images()))


@pytest.mark.parametrize("head", ["ml_decoder", "csra"])
def test_swin_gives_its_channels_last_map(head: str) -> None:
    options = {"img_size": 64, "embed_dim": 16, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4}
    model = network("swin_tiny_patch4_window7_224", head=head, options=options)
    assert model(images()[:, :, :64, :64]).shape == (2, FINDINGS)


@pytest.mark.parametrize(
    ("backbone", "count", "width"),
    [
        ("test_resnet", 25, 96),
        ("test_vit", 100, 64),
        ("test_vit_relpos", 100, 96),
        ("test_mambaout", 25, 256),
    ],
)
def test_heads_see_places_of_the_image_and_nothing_else(backbone: str, count: int, width: int) -> None:
    """160 pixels: feature maps of 5 × 5, or 10 × 10 patches and a class token, which is not a position."""
    body = network(backbone, head="csra").backbone.eval()
    with torch.no_grad():
        features = body(images())
        vectors = positions(body, features)
    assert vectors.shape == (2, count, width)
    if backbone == "test_vit":
        assert torch.equal(vectors, features[:, 1:])
    elif backbone == "test_mambaout":
        assert torch.equal(vectors[:, 7], features[:, 1, 2])
    elif backbone == "test_resnet":
        assert torch.equal(vectors[:, 7], features[:, :, 1, 2])


def test_the_seed_alone_draws_the_weights() -> None:
    for head in HEADS:
        first, repeated, different = (
            network("test_vit", head=head, seed=seed).state_dict().values() for seed in (3, 3, 4)
        )
        assert all(torch.equal(a, b) for a, b in zip(first, repeated, strict=True))
        assert not all(torch.equal(a, b) for a, b in zip(first, different, strict=True))


def test_plain_parameters_give_the_network_they_gave() -> None:
    """params.yaml from before heads and channels could be chosen: the bare timm model, weight for weight."""
    timm = import_timm()
    model = network("resnet10t", options={"channels": [8, 16, 32, 64], "stem_width": 8})
    torch.manual_seed(0)
    plain = timm.create_model(
        "resnet10t", in_chans=1, num_classes=FINDINGS, channels=[8, 16, 32, 64], stem_width=8
    )
    with torch.no_grad():
        assert torch.equal(model.eval()(images()), plain.eval()(images()))


def test_three_channels_see_the_image_three_times() -> None:
    model = network(channels=3).eval()
    # In the memory layout of the network: in another one, the sums of a convolution may end in other digits.
    repeated = images().repeat(1, 3, 1, 1).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        assert torch.equal(model(images()), model.backbone(repeated))


def test_classifier_is_drawn_anew_by_its_seed() -> None:
    for head, backbone in [(head, "test_vit") for head in HEADS] + [
        ("linear", "deit_tiny_distilled_patch16_224")
    ]:
        model = network(backbone, head=head)
        part = {name: tensor.clone() for name, tensor in classifier(model).state_dict().items()}
        names = {id(p) for p in classifier(model).parameters()}
        body = {n: p.clone() for n, p in model.named_parameters() if id(p) not in names}
        torch.manual_seed(11)
        before = torch.get_rng_state()
        reset_classifier(model, 5)
        assert torch.equal(torch.get_rng_state(), before)
        first = {name: tensor.clone() for name, tensor in classifier(model).state_dict().items()}
        assert any(not torch.equal(first[name], part[name]) for name in part)
        reset_classifier(model, 5)
        assert all(torch.equal(t, first[n]) for n, t in classifier(model).state_dict().items())
        reset_classifier(model, 6)
        assert not all(torch.equal(t, first[n]) for n, t in classifier(model).state_dict().items())
        assert all(torch.equal(p, body[n]) for n, p in model.named_parameters() if n in body)
        assert {id(p) for p in classifier(model).parameters()} == names  # an optimizer still holds them


@pytest.mark.parametrize("head", HEADS)
def test_layers_of_a_small_transformer_learn_by_depth(head: str) -> None:
    model = network("test_vit", head=head)
    blocks = len(model.backbone.blocks)
    groups = parameter_groups(model, 0.05, 2.0, 0.5)
    where = {id(p): group for group in groups for p in group["params"]}
    assert len(where) == sum(1 for _ in model.parameters())
    head_parameters = {id(p) for p in classifier(model).parameters()}
    for name, parameter in model.named_parameters():
        group = where[id(parameter)]
        part = name.removeprefix("backbone.")
        if id(parameter) in head_parameters:
            layers = 0
        elif part.startswith("norm."):
            layers = 1  # of the last block
        elif part.startswith("fc_norm."):
            layers = 0  # after pooling: of the classifier
        elif part.startswith("blocks."):
            layers = blocks - int(part.split(".")[1])
        else:  # patches, tokens, position embedding
            layers = blocks + 1
        assert group["lr_scale"] == 0.5**layers, name
        assert group["lr"] == 2.0 * 0.5**layers
        plain = parameter.ndim <= 1 or part.endswith(".bias") or part in ("pos_embed", "cls_token")
        assert group["weight_decay"] == (0.0 if plain else 0.05), name


@pytest.mark.parametrize("backbone", BACKBONES)
def test_without_layer_decay_there_are_two_groups(backbone: str) -> None:
    model = network(backbone)
    next(model.parameters()).requires_grad = False
    groups = parameter_groups(model, 0.05, 1e-3, 1.0)
    assert {(g["lr"], g["lr_scale"]) for g in groups} == {(1e-3, 1.0)}
    assert {g["weight_decay"] for g in groups} == {0.0, 0.05}
    assert sum(len(g["params"]) for g in groups) == sum(p.requires_grad for p in model.parameters())
    assert len(parameter_groups(model, 0.05, 1e-3, 0.7)) > 4


@pytest.mark.parametrize("backbone", ["test_convnext", "test_vit"])
def test_checkpointing_gives_the_same_gradients(backbone: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = network(backbone, head="csra", drop_path=0.5, gradient_checkpointing=checkpointing).train()
        torch.manual_seed(2)  # the same paths are dropped
        model(images(8)).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
        with torch.inference_mode():  # as scoring does
            assert model.eval()(images()).shape == (2, FINDINGS)
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_drop_path_drops_in_training_only() -> None:
    model = network("test_convnext", drop_path=0.5)
    rates = [m.drop_prob for m in model.modules() if type(m).__name__ == "DropPath"]
    assert max(rates) == pytest.approx(0.5)
    torch.manual_seed(0)
    assert not torch.equal(model(images(8)), model(images(8)))
    with torch.no_grad():
        assert torch.equal(model.eval()(images()), model(images()))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"backbone": "resnet10x"}, "no model `resnet10x`"),
        ({"options": {"wings": 2}}, "cannot be built with"),
        ({"backbone": "vgg11", "gradient_checkpointing": True}, "does not support it"),
        ({"backbone": "crossvit_9_240", "head": "csra"}, r"model\.(options|head): crossvit_9_240"),
        ({"backbone": "densenet121", "drop_path": 0.1}, "cannot be built with .*drop_path_rate"),
    ],
)
def test_what_cannot_be_built_says_so(changes: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        network(**{"backbone": "test_resnet", **changes})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"options": {"checkpoint_path": "x.pth"}}, "is set by model.pretrained"),
        ({"options": {"pretrained": True}}, "is set by model.pretrained"),
        ({"options": {"in_chans": 3}}, "is set by model.channels"),
        ({"options": {"drop_path_rate": 0.1}, "drop_path": 0.2}, "remove one"),
        ({"pretrained": "weights.pth"}, "pickled checkpoint can execute code"),
        ({"channels": 2}, "1 or 3"),
    ],
)
def test_parameters_that_contradict_each_other(changes: dict, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        ModelConfig.model_validate({"backbone": "test_resnet", **changes})


def test_batch_statistics_can_be_synchronised() -> None:
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(network(head="csra"))
    assert isinstance(converted, Network)
    assert any(isinstance(module, nn.SyncBatchNorm) for module in converted.modules())
