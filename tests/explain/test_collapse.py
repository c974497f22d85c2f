"""The closed-form ideal of neural collapse, against optimisation, and what is fitted to a classifier."""

import numpy as np
import pytest

from ral.explain.collapse import Ideal, distance
from ral.explain.geometry import to_ideal


def optimum(labels: np.ndarray, weight_decay: float, feature_decay: float) -> tuple[np.ndarray, np.ndarray]:
    """W [findings, width] and H [width, images] by alternating exact minimisation over one of them."""
    images, findings = labels.shape
    y, width = labels.T, findings + 2
    w = np.random.default_rng(0).normal(size=(findings, width))
    for _ in range(4000):
        h = np.linalg.solve(w.T @ w + images * feature_decay * np.eye(width), w.T @ y)
        w = np.linalg.solve(h @ h.T + images * weight_decay * np.eye(width), h @ y.T).T
    return w, h


def centred(labels: np.ndarray) -> np.ndarray:
    return labels - labels.mean(axis=0)


def test_numbers_of_one_label_per_image() -> None:
    counts, decay = np.array([40, 20, 10, 2]), 0.02
    labels = np.repeat(np.eye(4), counts, axis=0)
    # Without a bias, the labels are not centred.
    ideal = Ideal.of_cooccurrence(labels.T @ labels, counts)
    t = counts.sum() * decay
    expected = [4.88455532, 3.03213595, 1.72227766, 0]
    np.testing.assert_allclose(ideal.classifier(t), np.diag(expected), rtol=0, atol=1e-8)
    means = [value / n for value, n in zip(expected, counts, strict=True)]
    np.testing.assert_allclose(ideal.class_means(t), np.diag(means), rtol=0, atol=1e-8)
    assert (ideal.classifier(ideal.largest) == 0).all()


def test_the_ideal_of_co_occurring_findings_is_the_optimum() -> None:
    rng = np.random.default_rng(1)
    labels = (rng.random((200, 4)) < [0.4, 0.2, 0.1, 0.03]).astype(float)
    labels[:, 1] = np.maximum(labels[:, 1], labels[:, 0] * (rng.random(200) < 0.5))
    weight_decay, feature_decay = 0.03, 0.01
    w, h = optimum(centred(labels), weight_decay, feature_decay)
    ideal = Ideal(labels)
    t = 200 * np.sqrt(weight_decay * feature_decay)
    factor = np.sqrt(feature_decay / weight_decay)
    np.testing.assert_allclose(w @ w.T, factor * ideal.classifier(t), rtol=0, atol=1e-6)
    means = np.stack([h[:, labels[:, k] == 1].mean(axis=1) for k in range(4)]) - h.mean(axis=1)
    np.testing.assert_allclose(means @ means.T, ideal.class_means(t) / factor, rtol=0, atol=1e-6)
    # Images with the same labels share one feature.
    same = (labels == labels[0]).all(axis=1)
    np.testing.assert_allclose(h[:, same] - h[:, :1], 0, atol=1e-9)


def test_the_fit_finds_t_and_the_distance_is_0_at_the_ideal() -> None:
    labels = np.repeat(np.eye(4), [40, 20, 10, 2], axis=0)
    labels = np.concatenate([labels, np.zeros((128, 4))])
    ideal, t = Ideal(labels), 1.7
    values, vectors = np.linalg.eigh(ideal.classifier(t))
    weights = 3 * vectors * np.sqrt(np.maximum(values, 0))
    assert ideal.fit(weights) == pytest.approx(t, abs=1e-6)
    means_values, means_vectors = np.linalg.eigh(ideal.class_means(t))
    means = means_vectors * np.sqrt(np.maximum(means_values, 0))
    collapse, lengths = to_ideal(labels, weights, means)
    assert collapse is not None
    assert collapse.vanishing == pytest.approx(t**2, abs=1e-5)
    assert collapse.classifier_distance == pytest.approx(0, abs=1e-5)
    assert collapse.class_means_distance == pytest.approx(0, abs=1e-5)
    np.testing.assert_allclose(lengths, np.linalg.norm(weights, axis=1), atol=1e-4)
    # Two positives are fewer than 1.7² = 2.89: the finding has no direction.
    assert lengths[3] < 0.05 * lengths[2]


def test_distance_by_hand() -> None:
    assert distance(np.diag([1.0, 1]), np.diag([5.0, 5])) == pytest.approx(0)
    assert distance(np.diag([1.0, 0]), np.diag([0.0, 2])) == pytest.approx(np.sqrt(2))
    assert np.isnan(distance(np.zeros((2, 2)), np.eye(2)))
    assert np.isnan(distance(np.full((2, 2), np.nan), np.eye(2)))


def test_unknown_labels_move_nothing() -> None:
    labels = np.repeat(np.eye(2), [30, 10], axis=0)
    unknown = np.concatenate([labels, np.full((50, 2), np.nan)])
    np.testing.assert_allclose(Ideal(unknown).classifier(1.0), Ideal(labels).classifier(1.0), atol=1e-12)
    assert to_ideal(np.zeros((5, 2)), np.eye(2), np.eye(2)) == (None, None)
