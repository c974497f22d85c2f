"""The metrics against scikit-learn, with ties, masked rows and weights."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score, roc_curve

from ral.evaluation import metrics
from ral.evaluation.metrics import ap, auroc, cuts, f1, rank, ranked
from ral.evaluation.specs import RANKING_METRICS

EXACT = {"rtol": 0, "atol": 1e-12}


def sample(seed: int, rows: int = 300, ties: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Scores that know a little about the labels; with `ties` only a few distinct ones."""
    generator = np.random.default_rng(seed)
    labels = (generator.random(rows) < 0.2).astype(float)
    scores = generator.normal(size=rows) + labels
    return (np.round(scores * 2) / 2 if ties else scores), labels


def weighted(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """The metrics under weights of the rows [rows, columns]: every row is a patient."""
    return ranked(rank(scores, labels, np.arange(len(scores)), len(scores)), weights)


def reference(scores: np.ndarray, labels: np.ndarray, weight: np.ndarray) -> dict[str, float]:
    """The same by scikit-learn, with its own curve for the operating points."""
    fall_out, recall, _ = roc_curve(labels, scores, sample_weight=weight, drop_intermediate=False)
    return {
        "auroc": roc_auc_score(labels, scores, sample_weight=weight),
        "ap": average_precision_score(labels, scores, sample_weight=weight),
        "sensitivity_at_90_specificity": recall[1 - fall_out >= 0.9 - 1e-12].max(),
        "specificity_at_90_sensitivity": (1 - fall_out)[recall >= 0.9 - 1e-12].max(),
    }


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_equal_to_sklearn(seed: int, ties: bool) -> None:
    scores, labels = sample(seed, ties=ties)
    result = weighted(scores, labels, np.ones((300, 1), np.uint16))
    assert set(result) == set(RANKING_METRICS)
    for name, value in reference(scores, labels, np.ones(300)).items():
        np.testing.assert_allclose(result[name], value, err_msg=name, **EXACT)
    assert auroc(scores, labels) == result["auroc"][0]
    assert ap(scores, labels) == result["ap"][0]
    called, positive = scores >= 0.5, labels == 1
    own = f1(np.sum(called & positive), np.sum(called & ~positive), np.sum(positive))
    np.testing.assert_allclose(own, f1_score(labels, called), **EXACT)


@pytest.mark.parametrize("ties", [False, True])
def test_weights_equal_sklearns_sample_weight(ties: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "BLOCK", 1)  # blocks of 16 columns, the last one not full
    scores, labels = sample(1, ties=ties)
    weights = np.random.default_rng(2).integers(0, 4, size=(300, 40)).astype(np.uint16)
    result = weighted(scores, labels, weights)
    for column, weight in enumerate(weights.T):
        for name, value in reference(scores, labels, weight).items():
            np.testing.assert_allclose(result[name][column], value, err_msg=name, **EXACT)


@pytest.mark.parametrize("ties", [False, True])
def test_a_patients_weight_is_that_of_each_of_its_rows(ties: bool) -> None:
    scores, labels = sample(3, ties=ties)
    generator = np.random.default_rng(4)
    patients, weights = generator.integers(50, size=300), generator.integers(0, 4, size=(50, 30))
    by_patient = ranked(rank(scores, labels, patients, 50), weights)
    by_row = weighted(scores, labels, weights[patients])
    for name in RANKING_METRICS:
        np.testing.assert_array_equal(by_patient[name], by_row[name])


def test_only_what_is_asked_for_is_computed() -> None:
    scores, labels = sample(5)
    ranking = rank(scores, labels, np.arange(300), 300)
    weights = np.random.default_rng(6).integers(0, 4, size=(300, 5))
    assert list(ranked(ranking, weights, ("ap",))) == ["ap"]
    everything = ranked(ranking, weights)
    for name in RANKING_METRICS:
        np.testing.assert_array_equal(ranked(ranking, weights, (name,))[name], everything[name])


def test_unknown_rows_count_as_deleted() -> None:
    scores, labels = sample(3, ties=True)
    labels[::3] = np.nan
    known = ~np.isnan(labels)
    weights = np.random.default_rng(4).integers(0, 4, size=(300, 5))
    masked = weighted(scores, labels, weights)
    deleted = weighted(scores[known], labels[known], weights[known])
    for name in RANKING_METRICS:
        np.testing.assert_array_equal(masked[name], deleted[name])
    for masked_cut, deleted_cut in zip(
        vars(cuts(scores, labels)).values(), vars(cuts(scores[known], labels[known])).values(), strict=True
    ):
        np.testing.assert_array_equal(masked_cut, deleted_cut)


def test_order_of_rows_does_not_matter() -> None:
    scores, labels = sample(5, ties=True)
    mixed = np.random.default_rng(6).permutation(len(scores))
    assert auroc(scores, labels) == auroc(scores[mixed], labels[mixed])
    assert ap(scores, labels) == ap(scores[mixed], labels[mixed])


def test_perfect_inverted_and_constant_scores() -> None:
    _, labels = sample(7)
    once = np.ones((300, 1))
    assert {float(value[0]) for value in weighted(labels, labels, once).values()} == {1.0}
    inverted = weighted(-labels, labels, once)
    assert inverted["auroc"] == inverted["sensitivity_at_90_specificity"] == 0
    assert inverted["specificity_at_90_sensitivity"] == 0
    flat = np.zeros_like(labels)
    assert auroc(flat, labels) == 0.5
    assert ap(flat, labels) == pytest.approx(labels.mean(), abs=1e-12)


def test_random_scores_are_at_chance() -> None:
    generator = np.random.default_rng(8)
    labels = (generator.random(20_000) < 0.1).astype(float)
    result = weighted(generator.normal(size=20_000), labels, np.ones((20_000, 1)))
    assert result["auroc"] == pytest.approx(0.5, abs=0.02)
    assert result["ap"] == pytest.approx(labels.mean(), abs=0.02)
    assert result["sensitivity_at_90_specificity"] == pytest.approx(0.1, abs=0.02)
    assert result["specificity_at_90_sensitivity"] == pytest.approx(0.1, abs=0.02)


def test_without_positives_or_negatives_there_is_no_number() -> None:
    scores, ones = np.array([0.1, 0.2, 0.3]), np.ones(3)
    nothing = np.full(3, np.nan)
    for labels in (0 * ones, nothing):
        assert all(np.isnan(value).all() for value in weighted(scores, labels, ones[:, None]).values())
    result = weighted(scores, ones, ones[:, None])
    assert result.pop("ap") == 1.0
    assert all(np.isnan(value).all() for value in result.values())
    assert np.isnan(f1(np.array(0), np.array(2), np.array(0)))
    assert len(cuts(scores, nothing).thresholds) == 0


def test_only_the_replicate_without_positives_is_nan() -> None:
    scores, labels = np.array([0.3, 0.2, 0.1]), np.array([1.0, 0.0, 0.0])
    result = weighted(scores, labels, np.array([[1, 1, 1], [0, 2, 1], [3, 0, 0]]).T)
    np.testing.assert_array_equal(result["auroc"], [1, np.nan, np.nan])
    np.testing.assert_array_equal(result["ap"], [1, np.nan, 1])
    np.testing.assert_array_equal(result["sensitivity_at_90_specificity"], [1, np.nan, np.nan])
    np.testing.assert_array_equal(result["specificity_at_90_sensitivity"], [1, np.nan, np.nan])


def test_large_weights_do_not_overflow() -> None:
    scores, labels = sample(9)
    result = weighted(scores, labels, np.full((300, 1), 60_000, dtype=np.uint16))
    np.testing.assert_allclose(result["auroc"], [auroc(scores, labels)], **EXACT)
    np.testing.assert_allclose(result["ap"], [ap(scores, labels)], **EXACT)


def test_cuts_count_the_rows_at_or_above_each_score() -> None:
    scores, labels = sample(10, ties=True)
    cut = cuts(scores, labels)
    assert (np.diff(cut.thresholds) < 0).all()
    for threshold, true, false in zip(*vars(cut).values(), strict=True):
        assert true == np.sum((scores >= threshold) & (labels == 1))
        assert false == np.sum((scores >= threshold) & (labels == 0))
