"""The label review against cleanlab, which has confident learning for several findings per image."""

import numpy as np
import pytest
from cleanlab.count import compute_confident_joint
from cleanlab.multilabel_classification.filter import find_multilabel_issues_per_class
from scipy.special import expit

from ral.explain.review import confident_other, out_of_fold, patient_folds


def noisy(images: int = 2000) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and labels of four findings (30 % to 2 %). The last has a judge that is worse than chance."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(images, 4)) * 2 - [1.5, 2.5, 4.5, 3.0]
    target = (rng.random(z.shape) < expit(z)).astype(float)
    wrong = rng.random(z.shape) < 0.05
    z[:, 3] = -2.5 - 0.1 * z[:, 3]
    return expit(z + 0.3 * rng.normal(size=z.shape) * [1, 1, 1, 0]), np.where(wrong, 1 - target, target)


def as_lists(target: np.ndarray) -> list[list[int]]:
    return [np.flatnonzero(row).tolist() for row in target]


def fitted(images: int = 1500) -> tuple[np.ndarray, np.ndarray]:
    """Out-of-fold probabilities of two findings (30 % and 6 %), with 3 % of the labels wrong."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(images, 6))
    target = (features[:, :2] + 0.5 * rng.normal(size=(images, 2)) > [0.6, 1.7]).astype(float)
    target = np.where(rng.random(target.shape) < 0.03, 1 - target, target)
    folds = patient_folds(np.arange(images) // 2, 5, 0)
    return np.column_stack([out_of_fold(features, column, folds) for column in target.T]), target


@pytest.mark.parametrize("case", [noisy, fitted])
def test_suspicious_are_the_off_diagonals_of_the_confident_joint(case) -> None:
    probability, target = case()
    _, off_diagonal = compute_confident_joint(
        as_lists(target), probability, multi_label=True, return_indices_of_off_diagonals=True
    )
    for index, expected in enumerate(off_diagonal):
        _, suspicious = confident_other(probability[:, index], target[:, index])
        assert np.flatnonzero(suspicious).tolist() == sorted(expected)
        assert suspicious.any()


@pytest.mark.parametrize("case", [noisy, fitted])
def test_the_filter_for_several_findings_keeps_those_that_are_also_the_more_probable(case) -> None:
    """cleanlab's filter drops an issue if the label is the more probable value after all. Here it stays: the best
    classifier of a finding of 1 % rarely has a probability above 1/2.
    """
    probability, target = case()
    issues = find_multilabel_issues_per_class(
        as_lists(target), probability, filter_by="confident_learning", n_jobs=1
    )
    for index, (p, label) in enumerate(zip(probability.T, target.T, strict=True)):
        _, suspicious = confident_other(p, label)
        assert ((suspicious & ((p > 0.5) != label)) == issues[:, index]).all()


def test_the_most_confident_is_cleanlabs_worst_label_of_each_value() -> None:
    """Among images with one value of the label, the order is that of cleanlab's self-confidence."""
    probability, target = noisy()
    ranked = find_multilabel_issues_per_class(
        as_lists(target), probability, "self_confidence", filter_by="confident_learning", n_jobs=1
    )[0]
    for index, order in enumerate(ranked):
        confidence, _ = confident_other(probability[:, index], target[:, index])
        for value in (0, 1):
            own = [row for row in order if target[row, index] == value]
            assert (np.diff(confidence[own]) <= 1e-12).all()
    assert any(len(order) > 5 for order in ranked)
