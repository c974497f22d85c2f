"""Metrics on changed images: equal to the bit where nothing changes, and what scikit-learn says elsewhere."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score

from ral.evaluation.bootstrap import Support, holm, levels
from ral.robustness.contents import METRICS, ShiftRow
from ral.robustness.pixels import Shift
from ral.robustness.shifts import audit_shifts, compare, corrected, finding_metrics, positive_calls
from ral.robustness.subject import Subject

THRESHOLD = 0.4


def test_strength_zero_equals_the_clean_images_to_the_bit(subject: Subject) -> None:
    identities = [Shift("blur", 0), Shift("bits", 8), Shift("gamma", 1), Shift("noise", 0)]
    shifts, logits = audit_shifts(subject, identities, seed=0)
    assert shifts.rows
    for shift in identities:
        assert logits[shift.name].tobytes() == logits[""].tobytes()
    for row in shifts.rows:
        if row.findings:
            assert (row.difference, row.p, row.p_holm) == (0.0, 1.0, 1.0)
            assert row.value == row.clean
            assert row.low is None or row.low <= 0 <= row.high


def test_metrics_and_calls_are_those_of_the_changed_images(subject: Subject) -> None:
    shifts, logits = audit_shifts(subject, [Shift("gamma", 1.5)], seed=0)
    test = subject.test
    for column, name in enumerate(("Effusion", "Mass")):
        labels = test[name].to_numpy()
        for when, raw in (("clean", logits[""][:, column]), ("value", logits["gamma_1.5"][:, column])):
            scores = subject.calibration.findings[name].map.apply(raw.astype(np.float64))
            expected = {
                "ap": average_precision_score(labels, raw),
                "auroc": roc_auc_score(labels, raw),
                "brier": brier_score_loss(labels, scores),
                "calls": (scores >= THRESHOLD).sum(),
            }
            for metric, number in expected.items():
                row = shifts.row("gamma_1.5", "finding", name, metric)
                assert getattr(row, when) == pytest.approx(number, abs=1e-6), (name, metric, when)
                assert row.difference == pytest.approx(row.value - row.clean, abs=2e-6)
    macro, calls = (shifts.row("gamma_1.5", "macro", "macro", metric) for metric in ("ap", "calls"))
    parts = [shifts.row("gamma_1.5", "finding", name, "ap").value for name in ("Effusion", "Mass")]
    assert macro.value == pytest.approx(np.mean(parts), abs=1e-6)
    assert macro.findings == calls.findings == 2
    # A brighter or darker image is called differently, and the interval of a clear change excludes 0.
    assert calls.difference < 0
    assert calls.high < 0
    assert calls.p < 0.05


def test_a_finding_without_positives_has_rows_without_numbers(subject: Subject) -> None:
    shifts, _ = audit_shifts(subject, [Shift("flip")], seed=0)
    for metric in METRICS:
        row = shifts.row("flip", "finding", "Hernia", metric)
        assert (row.findings, row.clean, row.value, row.p) == (0, None, None, None)
    missing = [finding.name for finding in subject.summary().findings if finding.not_estimable]
    assert missing == ["Hernia"]


def test_every_shift_is_scored_with_the_seeded_noise(subject: Subject) -> None:
    first, again, other = (
        audit_shifts(subject, [Shift("noise", 20)], seed)[1]["noise_20"] for seed in (0, 0, 1)
    )
    assert first.tobytes() == again.tobytes()
    assert not np.array_equal(first, other)


def test_holm_is_over_the_rows_of_a_metric_and_level() -> None:
    p_values = {"ap": [0.01, 0.02, None, 0.04], "auroc": [0.03]}
    rows = [
        ShiftRow(shift=str(number), level="macro", name="macro", metric=metric, findings=1, p=p)
        for metric, numbers in p_values.items()
        for number, p in enumerate(numbers)
    ]
    adjusted = [row.p_holm for row in corrected(rows)]
    expected = holm(np.array([0.01, 0.02, np.nan, 0.04])).tolist()
    assert adjusted[:2] == expected[:2] == [0.03, 0.04]
    assert adjusted[2:] == [None, 0.04, 0.03]


def test_the_interval_is_that_of_paired_resamples(subject: Subject) -> None:
    """Of a change that is the same for every image, the difference in calls varies less than the calls do."""
    shifts, logits = audit_shifts(subject, [Shift("gamma", 1.2)], seed=0)
    before, after = (
        finding_metrics(subject, logits[name])["Mass"]["calls"].values for name in ("", "gamma_1.2")
    )
    row = shifts.row("gamma_1.2", "finding", "Mass", "calls")
    assert np.std(after - before) < np.hypot(np.std(after), np.std(before))
    called = [positive_calls(subject, logits[name])["Mass"] for name in ("", "gamma_1.2")]
    changed = Support.of(np.bincount(subject.resamples.patient[called[0] != called[1]]))
    low, high = np.quantile((after - before)[1:], levels(0.95, changed.effective))
    assert row.low == pytest.approx(low, abs=1.5)
    assert row.high == pytest.approx(high, abs=1.5)


def changed_calls(subject: Subject, images: int) -> ShiftRow:
    """The row of the calls of Mass if those of some images, each of another patient, are lost."""
    below, above = np.full((80, 3), -4.0, np.float32), np.full((80, 3), 4.0, np.float32)
    first = np.unique(subject.test["patient_id"], return_index=True)[1][:images]
    before, after = above.copy(), above.copy()
    after[first] = below[first]
    clean, changed = (finding_metrics(subject, logits) for logits in (before, after))
    calls = [positive_calls(subject, logits) for logits in (before, after)]
    rows = compare(subject, "some", clean, changed, (calls[0], calls[1]))
    return next(row for row in rows if (row.name, row.metric) == ("Mass", "calls"))


def test_few_changed_calls_are_no_sure_result(subject: Subject) -> None:
    """The patients whose calls change are the sample: a sign test of 6 patients has p = 1/32, of 4 patients 1/8."""
    assert (changed_calls(subject, 4).difference, changed_calls(subject, 4).p) == (-4, None)
    six, many = changed_calls(subject, 6), changed_calls(subject, 30)
    assert 1 / 32 < six.p < 0.1
    assert six.low < -6 < six.high <= 0
    assert many.p < 1e-4
    assert many.high < -20


def test_unchanged_calls_are_no_proof_that_none_changes(subject: Subject) -> None:
    row = changed_calls(subject, 0)
    # None of 40 patients: at most 1 − 0.025^(1/40) of the images of others.
    reach = 80 * (1 - 0.025 ** (1 / 40))
    assert (row.difference, row.p) == (0, 1)
    assert (row.low, row.high) == (pytest.approx(-reach, abs=1e-5), pytest.approx(reach, abs=1e-5))
