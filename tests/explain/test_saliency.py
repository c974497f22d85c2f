"""Heat maps against the formulas of their papers, computed by hand."""

import math

import pytest
import torch
from torch import Tensor, nn

from ral.config.model import ModelConfig
from ral.explain.features import NoMapError, feature_map, logits_of
from ral.explain.saliency import (
    Choice,
    choose_method,
    enlarge,
    grad_cam,
    recorded_attention,
    roll_out,
    rollout,
)
from ral.models import Network, build_model


class Toy(nn.Module):
    """A convolution, a pooling and a classifier, in the two halves of a timm model."""

    num_prefix_tokens = 0

    def __init__(self, channels: int, findings: int, peak: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, channels, 3, stride=2, padding=1)
        self.fc = nn.Linear(channels, findings)
        self.peak = peak

    def forward_features(self, images: Tensor) -> Tensor:
        return self.conv(images)

    def forward_head(self, features: Tensor) -> Tensor:
        return self.fc(features.amax((2, 3)) if self.peak else features.mean((2, 3)))

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))


def toy(peak: bool = False) -> Network:
    torch.manual_seed(0)
    return Network(Toy(5, 3, peak), None, 1, None).eval().requires_grad_(False)


def small(backbone: str, head: str = "linear", findings: int = 3, **options: int) -> Network:
    torch.manual_seed(0)
    config = {"backbone": backbone, "head": head, "ml_decoder": {"embedding": 32}, "options": options}
    return build_model(ModelConfig.model_validate(config), findings).eval().requires_grad_(False)


def images(count: int = 2, size: int = 64) -> Tensor:
    return torch.randn(count, 1, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("peak", [False, True])
def test_grad_cam_is_the_formula(peak: bool) -> None:
    network, batch = toy(peak), images(3, 16)
    with torch.no_grad():
        values = network.backbone.conv(batch)  # [3, 5, 8, 8]
    for finding in range(3):
        # Mean and maximum alike: a channel's slopes add up to its weight, over 64 positions.
        alpha = network.backbone.fc.weight[finding] / 64
        expected = (alpha[None, :, None, None] * values).sum(1).clamp_min(0)
        torch.testing.assert_close(grad_cam(network, batch, finding), expected)
    assert (expected == 0).any()
    assert (expected > 0).any()


def test_grad_cam_is_highest_where_a_blob_decides() -> None:
    network = toy()
    with torch.no_grad():
        network.backbone.conv.weight.zero_()
        network.backbone.conv.weight[0, 0, 1, 1] = 1  # channel 0 sees brightness, channel 1 darkness
        network.backbone.conv.weight[1, 0, 1, 1] = -1
        network.backbone.conv.bias.zero_()
        network.backbone.fc.weight.zero_()
        network.backbone.fc.weight[0, 0] = network.backbone.fc.weight[1, 1] = 1
    image = torch.zeros(1, 1, 64, 64)
    image[0, 0, 40:48, 8:16], image[0, 0, 8:16, 40:48] = 2, -3
    for finding, (rows, columns) in enumerate([((40, 48), (8, 16)), ((8, 16), (40, 48))]):
        heat = enlarge(grad_cam(network, image, finding), 64)[0]
        row, column = divmod(int(heat.argmax()), 64)
        assert rows[0] <= row < rows[1]
        assert columns[0] <= column < columns[1]
        outside = heat.clone()
        outside[rows[0] - 2 : rows[1] + 2, columns[0] - 2 : columns[1] + 2] = 0
        assert heat.max() == 1
        assert outside.max() == 0
    assert (
        enlarge(grad_cam(network, image, 2), 64).max() == 0
    )  # nothing increases this logit: no heat, no NaN


def test_enlarge_is_bilinear() -> None:
    heat = enlarge(torch.tensor([[[0.0, 1.0], [0.0, 3.0]]]), 4)[0]
    # Columns lie at -1/4, 1/4, 3/4 and 5/4 between the two; rows likewise: 1, 1.5, 2.5, 3 at the right edge.
    expected = torch.outer(torch.tensor([1.0, 1.5, 2.5, 3.0]), torch.tensor([0.0, 0.25, 0.75, 1.0])) / 3
    torch.testing.assert_close(heat, expected)


def test_roll_out_of_two_layers_by_hand() -> None:
    first = torch.tensor(
        [[[[1.0, 0.0], [0.2, 0.8]], [[0.0, 1.0], [0.4, 0.6]]]]
    )  # mean of two heads: .5 .5 / .3 .7
    second = torch.tensor([[[[0.2, 0.8], [1.0, 0.0]]]])
    # ½A + ½I: .75 .25 / .15 .85, then .6 .4 / .5 .5; the second times the first:
    expected = torch.tensor([[[0.6 * 0.75 + 0.4 * 0.15, 0.6 * 0.25 + 0.4 * 0.85], [0.45, 0.55]]])
    torch.testing.assert_close(roll_out([first, second]), expected)


def test_recorded_attention_is_softmax_of_queries_and_keys() -> None:
    network = small("test_vit", img_size=64)
    seen: list[Tensor] = []
    for block in network.backbone.blocks:
        block.attn.qkv.register_forward_hook(lambda _m, _i, output: seen.append(output))
    with torch.no_grad():
        before = network(images())
        seen.clear()
        fused = [block.attn.fused_attn for block in network.backbone.blocks]
        with recorded_attention(network.backbone) as attentions:
            during = network(images())
        assert fused == [block.attn.fused_attn for block in network.backbone.blocks]
        torch.testing.assert_close(before, during)
        assert torch.equal(before, network(images()))
    assert len(attentions) == len(network.backbone.blocks)
    for block, projected, attention in zip(network.backbone.blocks, seen, attentions, strict=False):
        heads, width = block.attn.num_heads, block.attn.head_dim
        query, key = projected.unflatten(2, (3, heads, width)).permute(2, 0, 3, 1, 4)[:2]
        expected = (query @ key.transpose(2, 3) / math.sqrt(width)).softmax(3)
        torch.testing.assert_close(attention, expected)
    reached = roll_out(attentions)
    torch.testing.assert_close(reached.sum(2), torch.ones(2, 17))
    # test_vit reads its class token: the first row, without the token itself.
    torch.testing.assert_close(rollout(network, images()), reached[:, 0, 1:].unflatten(1, (4, 4)))


@pytest.mark.parametrize("head", ["csra", "ml_decoder"])
def test_rollout_of_a_head_on_patches_reads_the_patches(head: str) -> None:
    network = small("test_vit", head, img_size=64)
    with torch.no_grad(), recorded_attention(network.backbone) as attentions:
        network(images())
    expected = roll_out(attentions)[:, 1:, 1:].mean(1).unflatten(1, (4, 4))
    torch.testing.assert_close(rollout(network, images()), expected)


SWIN = {"embed_dim": 16, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4, "img_size": 64}


@pytest.mark.parametrize("head", ["linear", "csra", "ml_decoder"])
@pytest.mark.parametrize(
    ("backbone", "options", "method", "places"),
    [
        ("test_resnet", {}, "grad_cam", 2),
        ("test_convnext", {}, "grad_cam", 2),
        ("test_vit", {"img_size": 64}, "rollout", 4),
        ("test_vit_relpos", {"img_size": 64}, "rollout", 4),
        ("swin_tiny_patch4_window7_224", SWIN, "grad_cam", 8),  # attends in windows; channels last
    ],
)
def test_networks(backbone: str, options: dict, method: str, places: int, head: str) -> None:
    network = small(backbone, head, findings=12, **options)
    with torch.no_grad():
        torch.testing.assert_close(logits_of(network, feature_map(network, images())), network(images()))

    def heat(batch: Tensor, finding: int) -> Tensor:
        return rollout(network, batch) if method == "rollout" else grad_cam(network, batch, finding)

    # Where nothing speaks for a finding, its map is empty.
    finding = next(finding for finding in range(12) if heat(images(), finding).any())
    maps = heat(images(), finding)
    assert maps.shape == (2, places, places)
    assert torch.isfinite(maps).all()
    assert (maps >= 0).all()
    assert not torch.equal(maps[0], maps[1])
    torch.testing.assert_close(
        maps[:1], heat(images()[:1], finding), rtol=1e-4, atol=1e-7
    )  # images do not affect each other


@pytest.mark.parametrize("head", ["linear", "csra"])
@pytest.mark.parametrize(
    ("backbone", "size", "options", "layer", "places"),
    [
        ("test_resnet", 64, {}, "layer2", 8),
        ("test_resnet", 224, {}, None, 7),
        ("test_resnet", 192, {}, "layer3", 12),
        ("test_convnext", 64, {}, "stages.1", 8),
        ("test_efficientnet", 64, {}, "blocks.2", 8),
        ("test_mambaout", 64, {}, "stages.1", 8),  # channels last
    ],
)
def test_a_coarse_last_map_gives_way_to_an_earlier_layer(
    backbone: str, size: int, options: dict, layer: str | None, places: int, head: str
) -> None:
    network, batch = small(backbone, head, **options), images(2, size)
    choice = choose_method(network, "auto", batch[:1])
    assert (choice.method, choice.layer) == ("grad_cam", layer)
    assert (choice.reason is None) == (layer is None)
    maps = torch.stack([grad_cam(network, batch, finding, choice.layer) for finding in range(3)])
    assert maps.shape == (3, 2, places, places)
    assert (maps >= 0).all()


def test_grad_cam_of_an_earlier_layer_is_the_formula() -> None:
    network, batch = small("test_resnet"), images(2)
    backbone = network.backbone
    values = backbone.layer2(
        backbone.layer1(backbone.maxpool(backbone.act1(backbone.bn1(backbone.conv1(batch)))))
    )
    values = values.detach().requires_grad_()
    features = backbone.layer4(backbone.layer3(values.clone()))
    logits, expected = backbone.forward_head(features), []
    for finding in range(3):
        (slope,) = torch.autograd.grad(logits[:, finding].sum(), values, retain_graph=True)
        expected.append((slope.mean((2, 3), keepdim=True) * values).sum(1).clamp_min(0).detach())
        torch.testing.assert_close(grad_cam(network, batch, finding, "layer2"), expected[-1])
    assert torch.stack(expected).any()


def test_auto_is_rollout_but_with_csra_grad_cam() -> None:
    batch = images(1, 112)
    for head, method in (("linear", "rollout"), ("ml_decoder", "rollout"), ("csra", "grad_cam")):
        network = small("test_vit", head, img_size=112)
        assert choose_method(network, "auto", batch) == Choice(method)  # type: ignore[arg-type]
        assert choose_method(network, "rollout", batch) == Choice("rollout")


@pytest.mark.parametrize("requested", ["auto", "rollout"])
def test_a_coarse_map_without_an_earlier_layer_is_not_shown(requested: str) -> None:
    choice = choose_method(small("test_vit", img_size=64), requested, images(1))
    assert (choice.method, choice.layer) == (None, None)
    assert "4 × 4 positions, fewer than 7 × 7" in str(choice.reason)
    choice = choose_method(small("test_vit", "csra", img_size=64), "grad_cam", images(1))
    assert choice.method is None
    assert "every earlier layer" in str(choice.reason)
    assert choose_method(small("test_vit", img_size=112), requested, images(1, 112)) == Choice("rollout")


def test_gray_images_for_three_channels() -> None:
    torch.manual_seed(0)
    config = ModelConfig(backbone="test_resnet", channels=3)
    network = build_model(config, 3).eval().requires_grad_(False)
    assert grad_cam(network, images(), 0).shape == (2, 2, 2)


def test_channels_last_map_keeps_its_rows_and_columns() -> None:
    """With a non-square image, swapping the two would be visible."""
    network = small("test_mambaout")
    assert grad_cam(network, images(1)[..., :32], 0).shape == (1, 2, 1)


def test_method_that_a_network_does_not_allow() -> None:
    with pytest.raises(NoMapError, match="all tokens attend to each other"):
        choose_method(small("test_resnet"), "rollout", images(1))
    vit = small("test_vit", img_size=64)
    with pytest.raises(NoMapError, match="class token and not on the patches"):
        choose_method(vit, "grad_cam", images(1))
    assert choose_method(small("test_vit", "csra", img_size=112), "grad_cam", images(1, 112)) == Choice(
        "grad_cam"
    )
    choice = choose_method(small("crossvit_9_240"), "auto", images(1, 240))
    assert choice.method is None
    assert "more than one last feature map" in str(choice.reason)
