"""Resampling of patients: weights, reproducibility, intervals and p values."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binomtest, norm, ttest_1samp
from scipy.stats import bootstrap as scipy_bootstrap
from scipy.stats import t as student
from sklearn.metrics import average_precision_score, roc_auc_score

from ral.errors import UserError
from ral.evaluation import bootstrap
from ral.evaluation.bootstrap import (
    BootstrapDistribution,
    Interval,
    Resamples,
    Support,
    bca_levels,
    draw,
    holm,
    levels,
)
from ral.evaluation.metrics import rank, ranked

PATIENTS = np.array([f"p{number:02d}" for number in np.random.default_rng(0).integers(30, size=100)])
NAMES = np.unique(PATIENTS)


def many(patients: float, images: int = 10**9) -> Support:
    """As many patients of one image each, or of more."""
    return Support(int(np.ceil(patients)), patients, images)


def test_each_replicate_draws_as_many_patients_as_there_are() -> None:
    resamples = draw(PATIENTS, replicates=2000, seed=1)
    assert resamples.weights.shape == (len(NAMES), 2001)
    assert resamples.weights.dtype == np.uint16
    assert (NAMES[resamples.patient] == PATIENTS).all()
    assert (resamples.weights[:, 0] == 1).all()
    drawn = resamples.weights[:, 1:]
    assert (drawn.sum(axis=0) == len(NAMES)).all()
    # Drawn with replacement: a patient is absent with a chance of (1 - 1/P)^P.
    assert (drawn == 0).mean() == pytest.approx((1 - 1 / len(NAMES)) ** len(NAMES), abs=0.01)


def test_weighting_equals_writing_the_rows_of_a_drawn_patient_again() -> None:
    generator = np.random.default_rng(2)
    labels = (generator.random(100) < 0.3).astype(float)
    scores = np.round(generator.normal(size=100) + labels, 1)
    resamples = draw(PATIENTS, replicates=20, seed=3)
    result = ranked(rank(scores, labels, resamples.patient, resamples.patients), resamples.weights)
    for column in range(21):
        again = np.repeat(np.arange(100), resamples.weights[resamples.patient, column])
        assert result["auroc"][column] == pytest.approx(
            roc_auc_score(labels[again], scores[again]), abs=1e-12
        )
        expected = average_precision_score(labels[again], scores[again])
        assert result["ap"][column] == pytest.approx(expected, abs=1e-12)


def test_the_draw_follows_the_patients_and_the_seed_only() -> None:
    first = draw(PATIENTS, 20, seed=1)
    mixed = np.random.default_rng(4).permutation(100)
    again = draw(PATIENTS[mixed], 20, seed=1)
    np.testing.assert_array_equal(first.weights, again.weights)
    np.testing.assert_array_equal(first.patient[mixed], again.patient)
    assert (first.weights != draw(PATIENTS, 20, seed=2).weights).any()


def test_bca_needs_the_same_replicates_and_leaves_each_patient_out_once() -> None:
    percentile, bca = draw(PATIENTS, 20, seed=1), draw(PATIENTS, 20, seed=1, method="bca")
    np.testing.assert_array_equal(percentile.weights, bca.weights[:, :21])
    left_out = bca.weights[:, 21:]
    assert left_out.shape == (len(NAMES), len(NAMES))
    assert (left_out.sum(axis=0) == len(NAMES) - 1).all()
    assert (left_out.sum(axis=1) == len(NAMES) - 1).all()


def test_many_patients_are_left_out_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "JACKKNIFE", 7)
    left_out = 1 - draw(PATIENTS, 20, seed=1, method="bca").weights[:, 21:]
    assert left_out.shape[1] == 7
    assert (left_out.sum(axis=1) == 1).all()
    assert set(left_out.sum(axis=0)) <= {len(NAMES) // 7, len(NAMES) // 7 + 1}


def test_one_patient_cannot_be_resampled() -> None:
    with pytest.raises(UserError, match=r"1 patient\(s\)"):
        draw(np.array(["p1", "p1"]), 100, seed=0)


def test_totals_are_weighted_sums_of_rows() -> None:
    resamples = draw(PATIENTS, 50, seed=5)
    values = np.random.default_rng(6).integers(0, 9, size=(100, 3))
    by_row = resamples.weights[resamples.patient].astype(float)
    np.testing.assert_array_equal(resamples.totals(values), by_row.T @ values)
    chosen = np.arange(100) % 3 == 0
    np.testing.assert_array_equal(
        resamples.rows(chosen).totals(values[chosen]), by_row[chosen].T @ values[chosen]
    )


def of(values: np.ndarray, confidence: float, patients: float = 1e9) -> tuple[float | None, float | None]:
    """Percentile interval of replicates whose sample has the value 50."""
    resamples = Resamples(np.zeros(1, int), np.ones((1, 1)), len(values), confidence, "percentile")
    result = resamples.interval(BootstrapDistribution(np.append(50.0, values), many(patients), "free"))
    assert result.value == 50
    return result.low, result.high


def test_interval_is_the_percentiles_of_the_finite_values() -> None:
    values = np.append(np.arange(101.0), [np.nan, np.nan])
    assert of(values, 0.9) == pytest.approx((5, 95), abs=1e-6)
    assert of(values, 0.5) == pytest.approx((25, 75), abs=1e-6)


def test_interval_of_nothing_finite_or_of_one_patient_is_none() -> None:
    assert of(np.array([np.nan]), 0.9) == (None, None)
    assert of(np.arange(101.0), 0.9, patients=1.0) == (None, None)
    resamples = draw(PATIENTS, 20, seed=1)
    nothing = BootstrapDistribution(np.full(21, np.nan), many(9))
    assert resamples.interval(nothing) == Interval(None, None, None)


def test_few_patients_widen_the_interval_as_a_t_interval_is_wider() -> None:
    np.testing.assert_allclose(levels(0.95, 1e9), [0.025, 0.975], atol=1e-6)
    for patients in (5, 20, 50):
        wide = student.ppf(0.975, patients - 1) * np.sqrt(patients / (patients - 1))
        np.testing.assert_allclose(norm.ppf(levels(0.95, patients)), [-wide, wide], atol=1e-9)


def test_support_counts_the_patients_of_the_smaller_class() -> None:
    resamples = draw(np.repeat(["a", "b", "c", "d"], 3), 20, seed=1)
    labels = np.array([1, 1, 0] * 4, float)
    assert resamples.support(labels) == Support(4, pytest.approx(4), 8)
    labels[3:] = 0  # all positive images of one patient
    assert resamples.support(labels) == Support(1, pytest.approx(1), 2)
    assert resamples.support(0 * labels) == Support(0, 0, 0)
    labels[:9] = [1, 1, 1, 1, 0, 0, 0, 0, 0]  # 3 and 1 images
    assert resamples.support(labels) == Support(2, pytest.approx(16 / 10), 4)


def test_mean_varies_for_what_varies_and_not_for_which_findings_a_replicate_has() -> None:
    resamples = draw(PATIENTS, 3, seed=1)
    mean = resamples.mean(
        [
            BootstrapDistribution(np.array([1, 2, 3, np.nan]), many(9)),
            BootstrapDistribution(np.array([3, np.nan, 4, np.nan]), many(9)),
        ]
    )
    np.testing.assert_array_equal(mean.values, [2, 2.5, 3.5, 2])
    assert np.isnan(resamples.mean([]).values).all()


def test_effective_patients_of_a_mean_are_those_of_what_varies() -> None:
    resamples = draw(PATIENTS, 2000, seed=1)
    generator = np.random.default_rng(2)
    wild, calm = (
        BootstrapDistribution(generator.normal(0, spread, size=2001), many(5)) for spread in (1.0, 0.001)
    )
    assert resamples.mean([wild, calm]).support.effective == pytest.approx(5, abs=0.01)
    # 4 + 4 degrees of freedom if both varied independently, but they are of the same patients.
    assert resamples.mean([wild, wild]).support.effective == pytest.approx(5, abs=0.01)
    more = replace(wild, support=many(100))
    # Two equal variances: 2² over 1/4 + 1/99.
    assert resamples.mean([wild, more]).support.effective == pytest.approx(1 + 4 / (1 / 4 + 1 / 99), abs=0.01)
    single = replace(wild, support=many(1))
    assert resamples.mean([single, calm]).support.effective == pytest.approx(2, abs=0.01)
    assert resamples.mean([single, calm]).support.patients == 5


def test_bca_is_that_of_scipy() -> None:
    data = np.random.default_rng(7).exponential(size=40)
    resamples = draw(np.arange(40).astype(str), 4000, seed=8, method="bca")
    order = np.unique(np.arange(40).astype(str), return_index=True)[1]
    totals = resamples.weights.T.astype(float) @ np.stack([data[order], np.ones(40)], axis=1)
    means = totals[:, 0] / totals[:, 1]
    result = resamples.interval(BootstrapDistribution(means, many(1e9), "free"))
    low, high = result.low or 0, result.high or 0
    theirs = scipy_bootstrap(
        (data,), np.mean, n_resamples=20_000, method="BCa", rng=np.random.default_rng(9)
    ).confidence_interval
    assert low == pytest.approx(theirs.low, abs=0.02)
    assert high == pytest.approx(theirs.high, abs=0.03)
    # Of a skewed sample it lies further up than the percentile interval.
    assert low > np.quantile(means[1:4001], 0.025) + 0.005


def test_bca_without_bias_and_skew_is_percentile() -> None:
    drawn = np.append(np.arange(-50, 50) + 0.5, 0.0)
    levels = bca_levels(0.0, drawn, np.array([-1.0, 1.0, np.nan]), np.array([0.025, 0.975]))
    np.testing.assert_allclose(levels, [0.025, 0.975], atol=1e-12)


def test_where_nothing_varies_the_other_end_is_the_exact_binomial_one() -> None:
    resamples = draw(PATIENTS, 100, seed=1, method="bca")
    exact = binomtest(9, 9).proportion_ci(0.95)  # Clopper-Pearson
    for scale in ("share", "rank"):
        ones = BootstrapDistribution(np.ones(resamples.weights.shape[1]), many(9), scale)
        result = resamples.interval(ones)
        assert (result.low, result.high) == (pytest.approx(exact.low, abs=1e-9), 1.0)
        none = resamples.interval(replace(ones, values=0 * ones.values))
        assert (none.low, none.high) == (0.0, pytest.approx(1 - exact.low, abs=1e-9))
    # Two that are 1 may differ as far as either may be off.
    gap = resamples.interval(resamples.difference(ones, ones))
    assert (gap.low, gap.high) == (pytest.approx(exact.low - 1), pytest.approx(1 - exact.low))
    half = replace(ones, values=ones.values / 2)
    assert resamples.interval(half) == Interval(0.5, 0.5, 0.5)


def test_a_mean_carries_what_members_without_spread_may_be_off() -> None:
    resamples = draw(PATIENTS, 2000, seed=1)
    generator = np.random.default_rng(3)
    a = BootstrapDistribution(
        np.append(0.4, generator.normal(0.4, 0.028, size=2000)), many(250, 2000), "share"
    )
    b = BootstrapDistribution(np.zeros(2001), many(4), "share")  # 0 of 4: up to 0.602
    upper = binomtest(0, 4).proportion_ci().high
    assert resamples.interval(b) == Interval(0, 0, pytest.approx(upper, abs=1e-9))
    own, mean = resamples.interval(a), resamples.interval(resamples.mean([a, b]))
    assert own.low == pytest.approx(0.4 - 1.96 * 0.028, abs=0.005)
    assert mean.value == pytest.approx(0.2)
    assert mean.low == pytest.approx(0.2 - 1.96 * 0.014, abs=0.003)
    assert mean.high == pytest.approx(0.2 + np.hypot(1.96 * 0.014, upper / 2), abs=0.003)
    # Nested means and differences keep it.
    again = resamples.interval(resamples.mean([resamples.mean([a, b])]))
    assert again.high == pytest.approx(mean.high, abs=1e-9)
    zero, b = replace(a, values=0 * a.values, support=many(1e9)), replace(b, support=many(5))
    upper = binomtest(0, 5).proportion_ci().high
    assert resamples.interval(resamples.difference(b, zero)).high == pytest.approx(upper, abs=1e-6)
    assert resamples.interval(resamples.difference(zero, b)).low == pytest.approx(-upper, abs=1e-6)


def test_a_proportion_has_the_exact_interval_of_what_its_images_tell() -> None:
    ids = np.array([f"p{number:03d}" for number in range(400)])
    resamples = draw(ids, 4000, seed=1)
    hit = np.arange(400) < 100
    share = BootstrapDistribution(
        resamples.totals(hit[:, None])[:, 0] / 400, Support.of(np.ones(400)), "share"
    )
    exact = binomtest(100, 400).proportion_ci()
    result = resamples.interval(share)
    assert (result.low, result.high) == (
        pytest.approx(exact.low, abs=0.003),
        pytest.approx(exact.high, abs=0.003),
    )
    # Four images of a patient that are all alike tell as much as one.
    alike = resamples.interval(replace(share, support=Support(400, 400.0, 1600)))
    assert alike.high == pytest.approx(result.high, abs=0.003)
    # One patient, one image.
    single = BootstrapDistribution(
        np.append(1.0, np.where(np.arange(4000) % 3, 1.0, np.nan)), Support(1, 1.0, 1), "share"
    )
    assert resamples.interval(single) == Interval(1, pytest.approx(0.025), 1)


def test_differences_have_percentile_ends_whatever_the_method() -> None:
    percentile, bca = (draw(PATIENTS, 1000, seed=1, method=method) for method in ("percentile", "bca"))
    generator = np.random.default_rng(4)
    skewed = generator.exponential(size=bca.weights.shape[1])
    own, other = (
        BootstrapDistribution(skewed, many(30)),
        BootstrapDistribution(np.zeros_like(skewed) + 0.5, many(30)),
    )
    gap = bca.interval(bca.difference(own, other))
    assert gap == percentile.interval(percentile.difference(own, other))
    assert bca.interval(replace(own, scale="free")) != percentile.interval(replace(own, scale="free"))


def test_fewer_than_five_patients_carry_no_interval_of_a_ranking() -> None:
    resamples = draw(PATIENTS, 101, seed=1)
    values = np.append(0.5, np.linspace(0, 1, 101))
    for patients, effective, shown in ((4, 4.0, False), (5, 5.0, True), (9, 1.4, False), (9, 1.6, True)):
        sampled = BootstrapDistribution(values, Support(patients, effective, 99))
        assert (resamples.interval(sampled).low is not None) == shown
        assert np.isfinite(resamples.p_value(sampled)) == shown


def test_p_value_is_that_of_a_t_test() -> None:
    generator = np.random.default_rng(10)
    data = generator.normal(0.5, 1.0, size=12)
    ids = np.array([f"p{number:02d}" for number in range(12)])
    resamples = draw(ids, 20_000, seed=11)
    means = resamples.totals(data[:, None])[:, 0] / 12
    assert resamples.p_value(BootstrapDistribution(means, many(12), "free")) == pytest.approx(
        ttest_1samp(data, 0).pvalue, rel=0.1
    )
    assert resamples.p_value(BootstrapDistribution(-means, many(12), "free")) == resamples.p_value(
        BootstrapDistribution(means, many(12), "free")
    )
    assert resamples.p_value(
        BootstrapDistribution(means, many(12), "free"), minimum_variance=1e6
    ) == pytest.approx(1, abs=0.01)
    assert resamples.p_value(BootstrapDistribution(0 * means, many(12), "free")) == 1
    assert np.isnan(
        resamples.p_value(BootstrapDistribution(0 * means + 1, many(12), "free"))
    )  # nothing varies: nothing can be said
    assert np.isnan(resamples.p_value(BootstrapDistribution(means * np.nan, many(12), "free")))
    assert np.isnan(resamples.p_value(BootstrapDistribution(means, many(1), "free")))


def test_no_p_is_zero() -> None:
    resamples = draw(PATIENTS, 101, seed=1)
    sure = BootstrapDistribution(np.append(1.0, 1 + np.linspace(-1e-9, 1e-9, 101)), many(1e6), "free")
    assert resamples.p_value(sure) == 1e-6


def test_the_jackknife_finds_the_bias_of_a_variance() -> None:
    """The mean square about the mean is too small by a factor of 1 - 1/n, and the jackknife knows it exactly."""
    ids = np.array([f"p{number:02d}" for number in range(30)])
    resamples = draw(ids, 10, seed=1, method="bca")
    data = np.random.default_rng(2).exponential(size=30)
    count, first, second = resamples.totals(np.stack([np.ones(30), data, data**2], axis=1)).T
    values = second / count - (first / count) ** 2
    assert values[0] - resamples.bias(values) == pytest.approx(np.var(data, ddof=1))
    assert draw(ids, 10, seed=1).bias(values[:11]) == 0  # percentile: nothing is left out


def test_holm_by_hand() -> None:
    np.testing.assert_allclose(holm(np.array([0.01, np.nan, 0.04, 0.03])), [0.03, np.nan, 0.06, 0.06])
    np.testing.assert_allclose(holm(np.array([0.5, 0.9])), [1.0, 1.0])
    assert holm(np.array([])).size == 0
    assert np.isnan(holm(np.array([np.nan]))).all()
