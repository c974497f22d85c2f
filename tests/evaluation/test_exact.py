"""Exact intervals: against scipy, at the ends, and between the bounds of the effective number of trials."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import beta, binom, binomtest, t
from sklearn.metrics import average_precision_score, f1_score

from ral.config.evaluate import RULES
from ral.evaluation.bootstrap import draw
from ral.evaluation.exact import clopper_pearson, effective_trials, f1_of, jaccard, middle_tail
from ral.evaluation.resampled_metrics import Scored, metrics_at_threshold, ranking
from ral.evaluation.results import Interval
from ral.evaluation.specs import THRESHOLD_METRICS


@pytest.mark.parametrize(("hits", "trials"), [(0, 1), (1, 1), (0, 4), (3, 7), (7, 7), (120, 995)])
@pytest.mark.parametrize("confidence", [0.95, 0.99])
def test_whole_trials_are_those_of_scipy(hits: int, trials: int, confidence: float) -> None:
    exact = binomtest(hits, trials).proportion_ci(confidence)
    result = clopper_pearson(hits / trials, trials, confidence)
    assert result == (pytest.approx(exact.low, abs=1e-9), pytest.approx(exact.high, abs=1e-9))


def test_trials_need_not_be_whole() -> None:
    result = clopper_pearson(0.3, 7.5, 0.95)
    assert result == pytest.approx((beta.ppf(0.025, 2.25, 6.25), beta.ppf(0.975, 3.25, 5.25)))


def test_effective_trials_lie_between_patients_and_images() -> None:
    plain = 0.3 * 0.7 / 0.001
    unknown = (1.959964 / t.ppf(0.975, 99)) ** 2
    assert effective_trials(0.3, 0.001, 100, 900, 0.95) == pytest.approx(plain * unknown, rel=1e-6)
    assert effective_trials(0.3, 1.0, 100, 900, 0.95) == 100
    assert effective_trials(0.3, 1e-9, 100, 900, 0.95) == 900
    assert effective_trials(1.0, 0.0, 3.2, 9, 0.95) == 3.2


def test_middle_tail_is_the_chance_of_more_and_half_that_of_as_many() -> None:
    for hits in range(8):
        expected = binom.sf(hits, 7, 0.9) + binom.pmf(hits, 7, 0.9) / 2
        assert middle_tail(np.array([hits / 7]), 7, 0.9)[0] == pytest.approx(expected, abs=1e-12)


def test_the_reach_of_specificity_at_90_sensitivity_is_that_of_its_threshold() -> None:
    """100 negatives at 0 to 99, positives at 10, 20, …: few leave the threshold open downwards."""
    resamples = draw(np.array([f"p{number:03d}" for number in range(200)]), 400, seed=1, method="bca")
    name = "specificity_at_90_sensitivity"
    for positives, bounded in ((10, False), (100, True)):
        labels = np.full(200, np.nan)
        labels[:positives], labels[100:] = 1, 0
        logits = np.append(np.arange(100) * 100 / positives + 100 / positives, np.arange(100.0))
        result = resamples.interval(ranking(Scored(labels, logits, None, {}), resamples, (name,))[name])
        threshold = logits[:positives][int(0.1 * positives)]
        assert result.value == pytest.approx(threshold / 100)
        # The mid-P test allows these counts of positives at or above the threshold.
        counts = np.arange(positives + 1)
        tails = binom.sf(counts, positives, 0.9) + binom.pmf(counts, positives, 0.9) / 2
        least = counts[(tails >= 0.025) & (tails <= 0.975)].min()
        assert result.high >= logits[:positives][positives - least] / 100
        assert (result.low > 0.01) == bounded


def test_ap_reaches_down_by_what_few_positives_add() -> None:
    """In 400 samples of 10 positives AP is above that of the population by about as much as the jackknife says."""
    generator = np.random.default_rng(5)
    labels = (np.arange(300) < 10).astype(float)
    resamples = draw(np.array([f"p{number:03d}" for number in range(300)]), 20, seed=1, method="bca")
    many = np.repeat(labels, 200)
    truth = average_precision_score(many, generator.normal(size=60_000) + 1.5 * many)
    excess, result = [], []
    for _ in range(400):
        ap = ranking(Scored(labels, generator.normal(size=300) + 1.5 * labels, None, {}), resamples, ("ap",))[
            "ap"
        ]
        excess.append(ap.values[0] - truth)
        result.append(ap.inflation)
    assert resamples.interval(ap).low < resamples.interval(replace(ap, inflation=0.0)).low
    assert np.mean(excess) > 0.01
    assert np.mean(result) == pytest.approx(np.mean(excess), abs=2 * np.std(excess) / np.sqrt(400))


def test_f1_is_a_proportion_in_disguise() -> None:
    truth, called = np.array([1, 1, 1, 0, 0, 0, 0]), np.array([1, 1, 0, 1, 0, 0, 0])
    assert jaccard(f1_score(truth, called)) == pytest.approx(2 / 4)
    assert f1_of(2 / 4) == pytest.approx(f1_score(truth, called))


def scored(labels: np.ndarray, called: np.ndarray) -> Scored:
    return Scored(labels, called, called, dict.fromkeys(RULES, 0.5))


def test_every_figure_has_the_patients_of_its_own_denominator() -> None:
    """1,000 patients of one image, 5 with the finding, one of them called and no other."""
    resamples = draw(np.array([f"p{number:04d}" for number in range(1000)]), 400, seed=1, method="bca")
    labels, called = np.zeros(1000), np.zeros(1000)
    labels[:5] = called[0] = 1
    result = metrics_at_threshold(scored(labels, called), resamples)["max_f1"]
    images = {name: result[name].support.images for name in THRESHOLD_METRICS}
    assert images == {"sensitivity": 5, "specificity": 995, "ppv": 1, "npv": 999, "f1": 5}
    assert resamples.interval(result["ppv"]) == Interval(1, pytest.approx(0.025), 1)
    low = binomtest(995, 995).proportion_ci().low
    assert resamples.interval(result["specificity"]) == Interval(1, pytest.approx(low, abs=1e-9), 1)
    exact = binomtest(1, 5).proportion_ci()
    sensitivity = resamples.interval(result["sensitivity"])
    assert sensitivity.low == pytest.approx(exact.low, abs=1e-6)
    assert sensitivity.high == pytest.approx(exact.high, abs=1e-6)
    f1 = resamples.interval(result["f1"])
    assert f1.high == pytest.approx(f1_of(exact.high), abs=1e-6)
    # No image is called: there is no PPV, and F1 and sensitivity are 0 of 5.
    none = metrics_at_threshold(scored(labels, 0 * called), resamples)["max_f1"]
    assert resamples.interval(none["ppv"]) == Interval(None, None, None)
    upper = binomtest(0, 5).proportion_ci().high
    assert resamples.interval(none["f1"]) == Interval(0, 0, pytest.approx(f1_of(upper)))


def test_images_of_one_patient_count_as_one() -> None:
    resamples = draw(np.repeat([f"p{number:02d}" for number in range(50)], 4), 400, seed=1)
    labels, called = np.zeros(200), np.zeros(200)
    labels[:4] = called[:4] = 1
    result = metrics_at_threshold(scored(labels, called), resamples)["max_f1"]
    assert resamples.interval(result["ppv"]) == Interval(1, pytest.approx(0.025), 1)


def test_a_model_without_the_threshold_of_a_rule_has_no_metrics_for_it() -> None:
    """Models that were released before a rule existed can still be evaluated."""
    labels = np.tile([1.0, 0.0], 20)
    resamples = draw(np.arange(40).astype(str), 100, seed=1, method="percentile")
    old = Scored(labels, labels, labels, {"max_f1": 0.5, "sensitivity": 0.5, "cost": 0.5})
    assert list(metrics_at_threshold(old, resamples)) == ["max_f1", "sensitivity", "cost"]
