"""SMOTE against imbalanced-learn, which knows no patients: with one image per patient both are the same."""

import numpy as np
import pytest
from imblearn.over_sampling import SMOTE
from sklearn.utils import check_random_state

from ral.config.second_phase import SmoteOptions
from ral.training.second_phase import oversample, smote


class Recorded:
    """Gives the draws of another generator in place of its own."""

    def __init__(self, columns: np.ndarray, steps: np.ndarray) -> None:
        self.columns, self.steps = columns, steps

    def integers(self, low: int, high: int, size: int) -> np.ndarray:
        assert (low, size) == (0, len(self.columns))
        assert self.columns.max() < high
        return self.columns

    def uniform(self, low: float, high: float, size: int) -> np.ndarray:
        assert (low, size) == (0, len(self.steps))
        return high * self.steps


def data(positives: int, negatives: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    return rng.normal(size=(positives + negatives, 6)), np.repeat([1, 0], [positives, negatives])


@pytest.mark.parametrize("neighbours", [1, 5])
@pytest.mark.parametrize("seed", range(5))
def test_the_same_draws_give_the_same_synthetic_images(neighbours: int, seed: int) -> None:
    features, target = data(23, 300)
    reference, labels = SMOTE(k_neighbors=neighbours, random_state=seed).fit_resample(features, target)
    assert (labels[len(target) :] == 1).all()
    count = len(labels) - len(target)
    # The library draws a pair of base and neighbour, then the step.
    random = check_random_state(seed)
    pairs = random.randint(low=0, high=23 * neighbours, size=count)
    draws = Recorded(pairs % neighbours, random.uniform(size=count))
    made = smote.between(
        SmoteOptions(neighbours=neighbours), features[:23], np.arange(23), pairs // neighbours, draws
    )
    np.testing.assert_allclose(made, reference[len(target) :], rtol=0, atol=1e-12)


def test_the_neighbours_are_the_same() -> None:
    features, target = data(200, 300)
    library = SMOTE(k_neighbors=5, random_state=0)
    library.fit_resample(features, target)
    nearest = library.nn_k_.kneighbors(features[:200], return_distance=False)[
        :, 1:
    ]  # without the image itself
    assert (smote.neighbours(features[:200], np.arange(200), 5) == nearest).all()


def test_as_many_positives_are_made() -> None:
    for positives, ratio in ((23, 1.0), (40, 0.5)):
        features, target = data(positives, 300)
        library = SMOTE(sampling_strategy=ratio, k_neighbors=5, random_state=0)
        _, labels = library.fit_resample(features, target)
        bases = oversample.further(positives, 300, ratio, np.random.default_rng(0))
        assert positives + len(bases) == (labels == 1).sum()
