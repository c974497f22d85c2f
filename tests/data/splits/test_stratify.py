"""Iterative stratification over patients, by hand."""

from collections.abc import Sequence

import numpy as np
import pytest

from ral.data.splits.stratify import stratify


def split(
    positives: Sequence[Sequence[int]],
    images: Sequence[int],
    shares: Sequence[float],
    order: Sequence[int] | None = None,
    given: Sequence[int] | None = None,
) -> list[int]:
    count = len(images)
    return stratify(
        np.array(positives, np.int64),
        np.array(images, np.int64),
        np.arange(count) if order is None else np.array(order),
        shares,
        np.full(count, -1) if given is None else np.array(given),
    ).tolist()


@pytest.mark.parametrize(("order", "expected"), [(None, [0, 0, 1, 2]), ([3, 2, 1, 0], [2, 1, 0, 0])])
def test_each_goes_where_most_is_needed_and_ties_follow_the_order(
    order: list[int] | None, expected: list[int]
) -> None:
    assert split([[1]] * 4, [1] * 4, (0.5, 0.25, 0.25), order) == expected


def test_the_rarest_finding_goes_first() -> None:
    # The last patient has the rare finding and fills the first split; the others make up for it.
    assert split([[1, 0], [1, 0], [1, 0], [1, 1]], [1] * 4, (0.5, 0.5)) == [1, 0, 1, 0]


def test_large_patients_go_first_and_small_ones_fill_the_gaps() -> None:
    assert split([[1], [3], [2]], [1, 3, 2], (0.5, 0.5)) == [1, 0, 1]


def test_who_has_a_split_keeps_it_and_counts() -> None:
    assert split([[1]] * 4, [1] * 4, (0.5, 0.5), given=[-1, -1, 0, 0]) == [1, 1, 0, 0]


def test_patients_without_findings_balance_the_images() -> None:
    assert split([[0]] * 3, [2, 1, 1], (0.5, 0.5)) == [0, 1, 1]


def test_ties_in_a_finding_go_to_the_split_that_needs_most_images() -> None:
    # The patient of the rare finding brings five images into the first split, so the next goes into the second.
    assert split([[1, 0], [0, 1], [0, 1]], [5, 1, 1], (0.5, 0.5)) == [0, 1, 0]


def test_nobody_is_left_over_and_inputs_stay() -> None:
    rng = np.random.default_rng(0)
    positives = np.eye(5, dtype=np.int64)[rng.integers(0, 5, 200)] * rng.integers(1, 3, (200, 1))
    images, given = rng.integers(3, 9, 200), np.full(200, -1)
    result = stratify(positives, images, rng.permutation(200), (0.7, 0.1, 0.2), given)
    assert (given == -1).all()
    total = positives.sum(axis=0)
    for number, share in enumerate((0.7, 0.1, 0.2)):  # within one patient's images of a finding
        assert (np.abs(positives[result == number].sum(axis=0) - share * total) <= 2).all()
    assert set(result.tolist()) == {0, 1, 2}
