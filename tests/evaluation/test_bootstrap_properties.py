"""Properties of the bootstrap weights, for any patients, seed and method."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ral.evaluation.bootstrap import Resamples, draw

REPLICATES = 15


@st.composite
def owners(draw: st.DrawFn) -> np.ndarray:
    """Patient id of each row: 2 to 40 patients of one to six rows, mixed."""
    patients = draw(st.integers(2, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    prefix = draw(st.text(max_size=3))
    ids = np.array([f"{prefix}{number}" for number in range(patients)])
    return rng.permutation(np.repeat(ids, rng.integers(1, 7, patients)))


SEED, METHOD = st.integers(0, 2**32 - 1), st.sampled_from(["percentile", "bca"])


def by_row(resamples: Resamples) -> np.ndarray:
    """How often each row is in each resample [rows, columns]."""
    return resamples.weights[resamples.patient].astype(np.int64)


@given(owners(), SEED, METHOD)
def test_a_resample_is_of_whole_patients_and_as_many_as_there_are(
    patients: np.ndarray, seed: int, method: str
) -> None:
    resamples = draw(patients, REPLICATES, seed, method=method)  # type: ignore[arg-type]
    count = len(set(patients.tolist()))
    assert resamples.patients == count
    weights = by_row(resamples)
    for patient in set(patients.tolist()):
        own = weights[patients == patient]
        assert (own == own[0]).all()
    assert (weights[:, 0] == 1).all()
    assert (resamples.weights[:, 1 : 1 + REPLICATES].sum(axis=0) == count).all()
    left_out = resamples.weights[:, 1 + REPLICATES :]
    assert left_out.shape[1] == (count if method == "bca" else 0)
    if method == "bca":
        assert ((left_out == 0).sum(axis=0) == 1).all()
        assert ((left_out == 0).sum(axis=1) == 1).all()


@given(owners(), SEED, METHOD, st.integers(0, 2**32 - 1))
def test_rows_in_another_order_are_drawn_alike(
    patients: np.ndarray, seed: int, method: str, shuffle: int
) -> None:
    first = by_row(draw(patients, REPLICATES, seed, method=method))  # type: ignore[arg-type]
    order = np.random.default_rng(shuffle).permutation(len(patients))
    again = by_row(draw(patients[order], REPLICATES, seed, method=method))  # type: ignore[arg-type]
    np.testing.assert_array_equal(first[order], again)


@given(owners(), SEED)
def test_more_replicates_begin_with_the_same(patients: np.ndarray, seed: int) -> None:
    few, many = draw(patients, 5, seed), draw(patients, REPLICATES, seed)
    np.testing.assert_array_equal(few.weights, many.weights[:, :6])


@given(owners(), SEED, METHOD, st.integers(0, 2**32 - 1))
def test_totals_of_chosen_rows_are_those_of_the_rows_written_again(
    patients: np.ndarray, seed: int, method: str, chosen_by: int
) -> None:
    resamples = draw(patients, REPLICATES, seed, method=method)  # type: ignore[arg-type]
    rng = np.random.default_rng(chosen_by)
    chosen = rng.random(len(patients)) < 0.5
    chosen[rng.integers(len(patients))] = True
    values = rng.integers(-9, 10, (len(patients), 3))
    weights = by_row(resamples)
    some = resamples.rows(chosen)
    np.testing.assert_array_equal(by_row(some), weights[chosen])
    expected = [np.repeat(values[chosen], times[chosen], axis=0).sum(axis=0) for times in weights.T]
    np.testing.assert_array_equal(some.totals(values[chosen]), expected)
