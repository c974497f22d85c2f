"""Hybrid loss: the formula, its special cases, and the side that each label is moved to."""

import pytest
import torch
import torch.nn.functional as F
from loss_references import LOGITS, TARGETS, gradient
from torch import Tensor

from ral.losses import ClassCounts, build_loss

LABELS = torch.tensor(
    [[1, 1, 0]] * 6 + [[1, 0, 0]] * 14 + [[0, 1, 1]] * 2 + [[0, 0, 1]] * 3 + [[0, 0, 0]] * 75
).double()
POSITIVES = LABELS.sum(0)
COUNTS = ClassCounts(POSITIVES, 100 - POSITIVES, LABELS.T @ LABELS)


def hybrid(reduction: str = "mean", **options: object) -> torch.nn.Module:
    return build_loss("hybrid", options, COUNTS, reduction)  # type: ignore[arg-type]


def test_the_jaccard_index_is_that_of_the_labels() -> None:
    wanted = torch.tensor([[1, 6 / 22, 0], [6 / 22, 1, 2 / 11], [0, 2 / 11, 1]]).double()
    torch.testing.assert_close(COUNTS.jaccard(), wanted)
    independent = ClassCounts(POSITIVES, 100 - POSITIVES).jaccard()
    assert independent[0, 1].item() == pytest.approx(1.6 / (20 + 8 - 1.6))
    assert (
        ClassCounts(0 * POSITIVES, 100 + 0 * POSITIVES, 0 * COUNTS.jaccard())
        .jaccard()
        .equal(torch.eye(3).double())
    )


def test_equals_the_formula() -> None:
    apart, p = 1 - COUNTS.jaccard(), torch.sigmoid(LOGITS)
    plain = 0.0
    for scores, logits, labels in zip(p, LOGITS, TARGETS, strict=True):
        found = [c for c in range(3) if labels[c]]
        for d in range(3):
            weight = (100 - POSITIVES[d]) / POSITIVES[d] if labels[d] else 1.0
            plain += weight * F.binary_cross_entropy_with_logits(logits[d], labels[d])
            if not labels[d] and found:
                plain += 0.7 * scores[d] * sum(apart[c, d] for c in found) / len(found)
    assert hybrid("sum", correlation=0.7)(LOGITS, TARGETS).item() == pytest.approx(float(plain), rel=1e-12)


@pytest.mark.parametrize("pos_weight", ["none", "balanced"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_without_correlation_it_is_weighted_cross_entropy_to_the_bit(pos_weight: str, reduction: str) -> None:
    bce = build_loss("bce", {"pos_weight": pos_weight}, COUNTS, reduction)  # type: ignore[arg-type]
    assert torch.equal(
        hybrid(reduction, pos_weight=pos_weight, correlation=0.0)(LOGITS, TARGETS), bce(LOGITS, TARGETS)
    )


def added(logits: Tensor, targets: Tensor) -> Tensor:
    """What the correlation adds."""
    return hybrid("none")(logits, targets) - hybrid("none", correlation=0.0)(logits, targets)


def test_right_scores_positives_and_images_without_a_positive_cost_nothing_more() -> None:
    certain = torch.where(TARGETS > 0, 60.0, -60.0).double()
    assert added(certain, TARGETS).abs().max() < 1e-20
    assert not added(LOGITS, torch.zeros_like(TARGETS)).any()
    assert not added(LOGITS, TARGETS)[TARGETS > 0].any()
    assert (added(LOGITS, TARGETS)[TARGETS < 1] > 0).all()


def test_a_negative_is_never_pushed_up_and_a_positive_never_down() -> None:
    x = torch.linspace(-12, 12, 49).double()
    for labels in ([1, 0, 0], [0, 1, 0], [1, 0, 1], [0, 0, 0], [1, 1, 1]):
        targets = torch.tensor([labels]).double().expand(49, 3)
        _, slope = gradient(hybrid("sum"), x[:, None].expand(49, 3), targets)
        assert (slope[targets > 0] <= 0).all()
        assert (slope[targets < 1] >= 0).all()


def test_an_unknown_label_is_no_positive_of_its_image() -> None:
    known, unknown = TARGETS.clone(), TARGETS.clone()
    known[0, 0], unknown[0, 0] = 0, torch.nan
    torch.testing.assert_close(added(LOGITS, unknown)[0, 1:], added(LOGITS, known)[0, 1:])
    assert added(LOGITS, unknown)[0, 0] == 0
