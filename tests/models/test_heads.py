"""ML-Decoder and CSRA against their formulas."""

import math

import pytest
import torch

from ral.models.heads import CSRA, MLDecoder


def test_csra_by_hand() -> None:
    head = CSRA(features=2, findings=2, heads=1, lamb=0.5)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
        head.bias.copy_(torch.tensor([0.25, -1.0]))
    # One image, three positions. Scores of finding 0: 0, ln 2, ln 3; of finding 1: 2, 0, 0.
    image = torch.tensor([[[0.0, 1.0], [math.log(2), 0.0], [math.log(3), 0.0]]])
    mean_0 = (math.log(2) + math.log(3)) / 3
    peak_0 = (2 * math.log(2) + 3 * math.log(3)) / 6  # softmax of the scores: 1/6, 2/6, 3/6
    peak_1 = 2 * math.e**2 / (math.e**2 + 2)
    expected = [0.25 + mean_0 + 0.5 * peak_0, -1.0 + 2 / 3 + 0.5 * peak_1]
    assert head(image)[0].tolist() == pytest.approx(expected, abs=1e-6)


def test_csra_heads_are_summed_and_the_last_is_the_maximum() -> None:
    head = CSRA(features=1, findings=1, heads=4, lamb=0.3)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[1.0], [2.0], [-1.0], [0.5]]))
        head.bias.fill_(0.0)
    x = torch.tensor([0.3, -0.2, 0.9])
    expected = 0.0
    for weight, sharpness in zip([1.0, 2.0, -1.0], [1, 2, 4], strict=True):
        s = weight * x
        expected += s.mean() + 0.3 * (torch.softmax(sharpness * s, 0) * s).sum()
    expected += (0.5 * x).mean() + 0.3 * 0.45
    assert head(x.view(1, 3, 1)).item() == pytest.approx(float(expected), abs=1e-6)


def test_csra_without_attention_is_the_linear_classifier() -> None:
    torch.manual_seed(0)
    head, maps = CSRA(8, 5, 1, 0.0), torch.randn(3, 7, 8)
    assert torch.allclose(head(maps), maps.mean(1) @ head.weight.T + head.bias, atol=1e-6)


@pytest.mark.parametrize(("findings", "groups"), [(5, 100), (14, 14), (14, 4), (13, 5), (7, 1)])
def test_ml_decoder_shares_findings_among_groups(findings: int, groups: int) -> None:
    torch.manual_seed(0)
    head = MLDecoder(features=12, findings=findings, groups=groups, embedding=16).eval()
    assert head.queries.shape == (min(groups, findings), 16)
    maps = torch.randn(3, 9, 12)
    logits = head(maps)
    assert logits.shape == (3, findings)
    # Finding f is answered by group ⌊f / size⌋ through weights of its own: no other logit moves with them.
    size = head.weight.shape[2]
    for finding in range(findings):
        with torch.no_grad():
            head.weight[finding // size, :, finding % size] += 1.0
            moved = (head(maps) != logits).any(dim=0)
            head.weight[finding // size, :, finding % size] -= 1.0
        assert moved.nonzero().flatten().tolist() == [finding]
        logits = head(maps)


def test_ml_decoder_sees_positions_as_a_set() -> None:
    torch.manual_seed(0)
    head, maps = MLDecoder(12, 6, 100, 16).eval(), torch.randn(2, 9, 12)
    assert torch.allclose(head(maps), head(maps[:, torch.randperm(9)]), atol=1e-5)
    assert (head(maps) - head(torch.zeros_like(maps))).abs().max() > 1e-3


def test_queries_are_kept_but_not_learned() -> None:
    head = MLDecoder(12, 6, 100, 16)
    assert "queries" in head.state_dict()
    assert "queries" not in dict(head.named_parameters())
