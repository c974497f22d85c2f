"""Intervals hold the truth as often as they say, on films of simulated patients."""

import pytest
from threadpoolctl import threadpool_limits

from benchmarks.coverage import INTERVALS, METRICS, intervals, truth


def coverage(
    positives: int, samples: int, kinds: tuple[str, ...], replicates: int
) -> dict[str, dict[str, float]]:
    """Share of the samples whose interval holds the truth: metric -> kind -> share."""
    true = truth()
    found = [intervals(positives, seed, replicates, kinds) for seed in range(samples)]
    return {
        name: {
            kind: sum(one[name][kind][0] <= true[name] <= one[name][kind][1] for one in found) / samples
            for kind in kinds
        }
        for name in METRICS
    }


def test_fifty_positive_patients_are_enough_and_films_do_not_count_as_patients() -> None:
    """Seeded; 150 samples have a standard error of 1.8 %, so the limits are wider than those of the long test."""
    found = coverage(50, 150, ("BCa", "plain percentile of films"), replicates=400)
    for shares in found.values():
        assert 0.90 <= shares["BCa"] <= 0.99
        assert shares["plain percentile of films"] < 0.86


@pytest.mark.long
@pytest.mark.parametrize("positives", [50, 100, 200])
def test_intervals_cover_93_to_97_percent_from_50_positive_patients_on(positives: int) -> None:
    with threadpool_limits(1):
        found = coverage(positives, 1500, tuple(INTERVALS), replicates=1000)
    for shares in found.values():
        assert 0.93 <= shares["BCa"] <= 0.97
        assert 0.93 <= shares["percentile"] <= 0.97
        assert shares["plain percentile of films"] < 0.88
