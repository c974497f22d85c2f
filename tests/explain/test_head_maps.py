"""Heat maps of the heads CSRA and ML-Decoder, of named layers, and the list of all that a network offers."""

import pytest
import torch
from torch import Tensor

from ral.config.model import ModelConfig
from ral.explain.features import NoMapError, feature_map, layers
from ral.explain.head_maps import csra_map, ml_decoder_map
from ral.explain.saliency import Choice, candidates, choose_method, grad_cam, grad_cams, heat_maps
from ral.models import Network, build_model, positions

BLANK = torch.zeros(1, 1, 64, 64)


def small(backbone: str = "test_resnet", head: str = "linear", **more: object) -> Network:
    torch.manual_seed(0)
    config = {"backbone": backbone, "head": head, "ml_decoder": {"embedding": 32}, **more}
    return build_model(ModelConfig.model_validate(config), 3).eval().requires_grad_(False)


def images(count: int = 2) -> Tensor:
    return torch.randn(count, 1, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_csra_map_is_what_the_positions_add_to_the_logit(heads: int) -> None:
    network, batch = small(head="csra", csra={"heads": heads, "lamb": 0.3}), images()
    with torch.no_grad():
        # Weights and features that make every score positive, so that nothing is cut off.
        network.head.weight.abs_()
        features = feature_map(network, batch)
        tokens = positions(network.backbone, features).abs()
        network.backbone.forward_head = lambda _: tokens.transpose(1, 2).reshape(features.shape)
        logits = network.head(tokens)
    for finding in range(3):
        heat = csra_map(network, batch, finding)
        assert heat.shape == (2, *features.shape[2:])
        torch.testing.assert_close(heat.sum(dim=(1, 2)), logits[:, finding] - network.head.bias[finding])


def test_csra_map_is_highest_at_the_position_of_the_finding() -> None:
    network, batch = small(head="csra"), images(1)
    with torch.no_grad():
        features = feature_map(network, batch)
        wanted = features[0, :, 1, 0]
        network.head.weight.copy_(torch.stack([wanted, -wanted, torch.zeros_like(wanted)]))
        scores = (features * wanted[None, :, None, None]).sum(dim=1)
    heat = csra_map(network, batch, 0)[0]
    assert heat.argmax() == scores[0].argmax()
    assert csra_map(network, batch, 2).max() == 0
    assert (heat >= 0).all()
    assert ((heat > 0) == (scores[0] > 0)).all()


def test_ml_decoder_map_is_the_attention_of_the_query() -> None:
    network, batch = small(head="ml_decoder"), images()
    seen: list[Tensor] = []
    attention = network.head.attention
    original = attention.forward

    def spy(*inputs: Tensor, **options: object) -> tuple[Tensor, Tensor | None]:
        output = original(*inputs, **(options | {"need_weights": True}))
        seen.append(output[1])
        return output

    attention.forward = spy
    with torch.no_grad():
        network(batch)
    attention.forward = original
    for finding in range(3):
        heat = ml_decoder_map(network, batch, finding)
        torch.testing.assert_close(heat.flatten(1), seen[0][:, finding])
        torch.testing.assert_close(heat.sum(dim=(1, 2)), torch.ones(2))


def test_findings_of_a_group_share_the_attention() -> None:
    network = small(head="ml_decoder", ml_decoder={"embedding": 32, "groups": 2})
    first, second, third = (ml_decoder_map(network, images(), finding) for finding in range(3))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


def test_another_head_has_no_such_map() -> None:
    for method, maps in (("csra", csra_map), ("ml_decoder", ml_decoder_map)):
        with pytest.raises(NoMapError, match=f"{method} needs model.head: {method}"):
            maps(small(), BLANK, 0)
        with pytest.raises(NoMapError, match=f"{method} needs"):
            choose_method(small(), method, BLANK)  # type: ignore[arg-type]
        choice = choose_method(small(head=method), method, BLANK)  # type: ignore[arg-type]
        assert choice.method is None
        assert "2 × 2 positions, fewer than 7 × 7" in str(choice.reason)


def test_several_layers_at_once_are_those_one_by_one() -> None:
    network, batch = small(), images()
    names = [*list(layers(network, BLANK))[:-1], None]
    assert len(names) >= 3
    for name, heat in zip(names, grad_cams(network, batch, 1, names), strict=True):
        torch.testing.assert_close(heat, grad_cam(network, batch, 1, name), rtol=1e-5, atol=1e-8)
    assert grad_cams(network, batch, 1, []) == []


def test_candidates_are_all_methods_and_layers() -> None:
    network = small(head="csra")
    found = candidates(network, BLANK)
    listed = layers(network, BLANK)
    last = list(listed)[-1]
    assert {choice.layer for choice in found if choice.method == "grad_cam"} == {*listed, None} - {last}
    assert found[Choice("grad_cam")] == found[Choice("csra")] == listed[last]
    for choice, sides in found.items():
        assert heat_maps(network, images(), 0, choice).shape == (2, *sides)
    transformer = small("test_vit", options={"img_size": 64})
    assert set(candidates(transformer, BLANK)) == {Choice("rollout")}  # its class token sees no feature map


def test_a_network_without_a_feature_map_has_no_candidates() -> None:
    options = {
        "img_size": 64,
        "embed_dim": [16, 32],
        "num_heads": [2, 2],
        "patch_size": [8, 16],
        "img_scale": [1, 1],
    }
    assert candidates(small("crossvit_tiny_240", options=options), BLANK) == {}


def test_a_named_layer_is_used_however_coarse() -> None:
    network = small()
    listed = layers(network, BLANK)
    *earlier, last = listed
    assert choose_method(network, "auto", BLANK, earlier[-1]) == Choice(
        "grad_cam", earlier[-1], "set by explain.layer"
    )
    assert choose_method(network, "grad_cam", BLANK, last) == Choice("grad_cam")  # the last feature map
    with pytest.raises(NoMapError, match=r"`layer9` is no layer .* Allowed: .*layer1"):
        choose_method(network, "auto", BLANK, "layer9")
    with pytest.raises(NoMapError, match=r"explain\.layer is for grad_cam"):
        choose_method(network, "rollout", BLANK, last)
