"""The metrics against scikit-learn, with ties, masked rows and weights."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from ral.evaluation import metrics
from ral.evaluation.metrics import ap, auroc, auroc_and_ap, best_f1_threshold, cuts, f1, f1_weighted

EXACT = {"rtol": 0, "atol": 1e-12}


def sample(seed: int, rows: int = 300, ties: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Scores that know a little about the labels; with `ties` only a few distinct ones."""
    generator = np.random.default_rng(seed)
    labels = (generator.random(rows) < 0.2).astype(float)
    scores = generator.normal(size=rows) + labels
    return (np.round(scores * 2) / 2 if ties else scores), labels


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_equal_to_sklearn(seed: int, ties: bool) -> None:
    scores, labels = sample(seed, ties=ties)
    np.testing.assert_allclose(auroc(scores, labels), roc_auc_score(labels, scores), **EXACT)
    np.testing.assert_allclose(ap(scores, labels), average_precision_score(labels, scores), **EXACT)
    np.testing.assert_allclose(f1(scores, labels, 0.5), f1_score(labels, scores >= 0.5), **EXACT)


@pytest.mark.parametrize("ties", [False, True])
def test_weights_equal_sklearns_sample_weight(ties: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "BLOCK", 2100)  # several blocks, the last one not full
    scores, labels = sample(1, ties=ties)
    weights = np.random.default_rng(2).integers(0, 4, size=(20, len(scores))).astype(np.uint16)
    aurocs, aps = auroc_and_ap(scores, labels, weights)
    f1s = f1_weighted(scores, labels, 0.5, weights)
    assert aurocs.shape == aps.shape == f1s.shape == (20,)
    for row, weight in enumerate(weights):
        np.testing.assert_allclose(aurocs[row], roc_auc_score(labels, scores, sample_weight=weight), **EXACT)
        expected = average_precision_score(labels, scores, sample_weight=weight)
        np.testing.assert_allclose(aps[row], expected, **EXACT)
        expected = f1_score(labels, scores >= 0.5, sample_weight=weight)
        np.testing.assert_allclose(f1s[row], expected, **EXACT)


def test_unknown_rows_count_as_deleted() -> None:
    scores, labels = sample(3, ties=True)
    labels[::3] = np.nan
    known = ~np.isnan(labels)
    weights = np.random.default_rng(4).integers(0, 4, size=(5, len(scores)))
    for masked, deleted in zip(
        auroc_and_ap(scores, labels, weights),
        auroc_and_ap(scores[known], labels[known], weights[:, known]),
        strict=True,
    ):
        np.testing.assert_array_equal(masked, deleted)
    np.testing.assert_array_equal(
        f1_weighted(scores, labels, 0.5, weights),
        f1_weighted(scores[known], labels[known], 0.5, weights[:, known]),
    )
    assert best_f1_threshold(scores, labels) == best_f1_threshold(scores[known], labels[known])


def test_order_of_rows_does_not_matter() -> None:
    scores, labels = sample(5, ties=True)
    mixed = np.random.default_rng(6).permutation(len(scores))
    assert auroc(scores, labels) == auroc(scores[mixed], labels[mixed])
    assert ap(scores, labels) == ap(scores[mixed], labels[mixed])
    assert best_f1_threshold(scores, labels) == best_f1_threshold(scores[mixed], labels[mixed])


def test_perfect_inverted_and_constant_scores() -> None:
    _, labels = sample(7)
    assert auroc(labels, labels) == ap(labels, labels) == f1(labels, labels, 1.0) == 1.0
    assert auroc(-labels, labels) == 0.0
    flat = np.zeros_like(labels)
    assert auroc(flat, labels) == 0.5
    assert ap(flat, labels) == pytest.approx(labels.mean(), abs=1e-12)


def test_random_scores_are_at_chance() -> None:
    generator = np.random.default_rng(8)
    labels = (generator.random(20_000) < 0.1).astype(float)
    scores = generator.normal(size=20_000)
    assert auroc(scores, labels) == pytest.approx(0.5, abs=0.02)
    assert ap(scores, labels) == pytest.approx(labels.mean(), abs=0.02)


def test_without_positives_or_negatives_there_is_no_number() -> None:
    scores, ones = np.array([0.1, 0.2, 0.3]), np.ones(3)
    nothing = np.full(3, np.nan)
    for labels in (0 * ones, nothing):
        assert np.isnan(auroc(scores, labels))
        assert np.isnan(ap(scores, labels))
        assert np.isnan(f1(scores, labels, 0.2))
        assert np.isnan(best_f1_threshold(scores, labels))
    assert np.isnan(auroc(scores, ones))
    assert ap(scores, ones) == 1.0
    assert len(cuts(scores, nothing).thresholds) == 0


def test_only_the_replicate_without_positives_is_nan() -> None:
    scores, labels = np.array([0.3, 0.2, 0.1]), np.array([1.0, 0.0, 0.0])
    weights = np.array([[1, 1, 1], [0, 2, 1], [3, 0, 0]])
    aurocs, aps = auroc_and_ap(scores, labels, weights)
    np.testing.assert_array_equal(aurocs, [1, np.nan, np.nan])
    np.testing.assert_array_equal(aps, [1, np.nan, 1])
    np.testing.assert_array_equal(f1_weighted(scores, labels, 0.3, weights), [1, np.nan, 1])


@pytest.mark.parametrize("seed", range(5))
def test_threshold_is_the_highest_observed_score_of_best_f1(seed: int) -> None:
    scores, labels = sample(seed, rows=40, ties=True)
    by_threshold = {t: f1_score(labels, scores >= t) for t in np.unique(scores)}
    best = max(by_threshold.values())
    expected = max(t for t, value in by_threshold.items() if value == pytest.approx(best, abs=1e-12))
    assert best_f1_threshold(scores, labels) == expected


def test_of_two_thresholds_with_the_same_f1_the_higher_is_taken() -> None:
    # 4 of 4 called, 2 right: 2*2/(4+2); 1 of 1 called and right: 2*1/(1+2). Both are 2/3.
    assert best_f1_threshold(np.array([4.0, 3.0, 2.0, 1.0]), np.array([1.0, 0.0, 0.0, 1.0])) == 4.0


def test_large_weights_do_not_overflow() -> None:
    scores, labels = sample(9)
    weights = np.full((1, len(scores)), 60_000, dtype=np.uint16)
    np.testing.assert_allclose(auroc_and_ap(scores, labels, weights)[0], [auroc(scores, labels)], **EXACT)
    np.testing.assert_allclose(f1_weighted(scores, labels, 0.5, weights), [f1(scores, labels, 0.5)], **EXACT)
