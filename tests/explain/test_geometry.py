"""Directions of the classifier and class means, by hand."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from ral.data.dataset import open_dataset
from ral.explain.contents import MeanCosines
from ral.explain.features import feature_map, pooled
from ral.explain.geometry import class_means, class_vectors, cosines, geometry, sample, similarity, spread
from ral.models.load import load_network

# Two feature maps.
CROSS_VIT = {
    "img_size": 64, "embed_dim": [16, 32], "num_heads": [2, 2], "patch_size": [8, 16], "img_scale": [1, 1]
}  # fmt: skip


def test_cosines_by_hand() -> None:
    matrix = cosines(np.array([[1.0, 0], [1, 1], [-2, 0], [0, 0]]))
    root = np.sqrt(0.5)
    np.testing.assert_allclose(matrix[:3, :3], [[1, root, -1], [root, 1, -root], [-1, -root, 1]])
    assert np.isnan(matrix[3]).all()


def test_similarity_of_halves() -> None:
    result = similarity(np.array([[1.0, 0], [0, 1], [1, 0], [1, 0], [np.nan, 0]]))
    assert result.mean_cosine == MeanCosines(
        common=round(1 / 3, 6), common_to_rare=round(2 / 3, 6), rare=None
    )
    assert result.cosines is not None
    assert result.cosines[4] == (None,) * 5
    assert result.cosines[0] == (1, 0, 1, 1, None)


def test_spread_by_hand() -> None:
    group = np.array([[1.0, 0], [3, 0], [2, 3]])
    (mean,) = class_means([group], np.array([0.0, 1]))
    np.testing.assert_allclose(mean, [2, 0])
    # Squared distances from (2, 1): 2, 2, 4 over n - 1; between: 4 less 4 / 3.
    assert spread(group, mean) == {"within": 4.0, "between": 2.666667, "variability": 1.5}
    assert spread(group[:1], mean) == {"within": None, "between": None, "variability": None}
    assert spread(group, mean / 10)["variability"] is None  # indistinguishable from the mean of all
    assert np.isnan(class_means([group[:0]], np.zeros(2))).all()


def test_few_images_do_not_look_far_away() -> None:
    rng = np.random.default_rng(0)
    between = [spread(group, group.mean(axis=0))["between"] for group in rng.normal(1, 5, size=(4000, 4, 3))]
    assert np.mean(between) == pytest.approx(3, abs=0.5)  # uncorrected it would be 3 + 75 / 4


def test_sample_is_even_and_bounded() -> None:
    labels = np.zeros((1000, 2))
    labels[::10, 0], labels[7, 1], labels[8, 1] = 1, 1, np.nan
    whole, (first, second) = sample(labels, 100)
    assert (len(whole), len(first), list(second)) == (50, 25, [7])
    assert list(whole[:3]) == [0, 20, 40]
    assert list(first[:3]) == [0, 40, 80]


@pytest.mark.parametrize("backbone", ["test_resnet", "test_convnext", "test_vit"])
@pytest.mark.parametrize("head", ["linear", "csra", "ml_decoder"])
def test_class_vectors(prepared: Path, make_model: Callable[..., Path], backbone: str, head: str) -> None:
    network, info = load_network(make_model(backbone, head, csra={"heads": 2, "lamb": 0.0}))
    vectors, why = class_vectors(network, 3)
    images = torch.randn(4, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features, logits = pooled(network, feature_map(network, images)).double(), network(images).double()
    if head == "ml_decoder":
        assert vectors is None
        assert "MLDecoder has no weight vector per finding" in str(why)
    else:  # without the peaks of CSRA (λ = 0), the logits are these vectors times the features
        bias = logits - features @ torch.from_numpy(vectors).T
        torch.testing.assert_close(bias, bias[:1].expand_as(bias), atol=1e-5, rtol=0)
    result = geometry(network, info, open_dataset(prepared), 1000)
    assert (result.classifier.not_available is not None) == (head == "ml_decoder")
    assert (result.collapse is None) == (head == "ml_decoder")
    if result.collapse is not None:
        assert 0 < result.collapse.classifier_distance < 1.42
        ideal = [finding.ideal_weight_norm for finding in result.findings]
        measured = [finding.weight_norm for finding in result.findings]
        assert np.square(ideal).sum() == pytest.approx(np.square(measured).sum(), rel=1e-4)
    prevalences = [finding.train_prevalence for finding in result.findings]
    assert prevalences == sorted(prevalences, reverse=True)
    assert np.shape(result.class_means.cosines) == (3, 3)
    assert result.images == 48


def test_backbone_without_one_map_says_so(prepared: Path, make_model: Callable[..., Path]) -> None:
    network, info = load_network(make_model("crossvit_9_240", options=CROSS_VIT))
    assert "more than one" in str(geometry(network, info, open_dataset(prepared), 100).not_available)
