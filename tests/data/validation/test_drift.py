"""Drift: profiles add up, and both measures see what they are for."""

import math

import pandas as pd
import pytest

from ral.config.data import DriftConfig
from ral.data.validation import drift
from ral.data.validation.expectations import ACCEPT, drift_expectations
from ral.data.validation.result import Profile

LIMITS = DriftConfig()


def profile(rows: int = 1000, positive: float = 0.3, pa: float = 0.5) -> Profile:
    return Profile(
        rows=rows,
        patients=rows,
        columns={"view": {"PA": pa, "AP": 1 - pa}},
        labels={"Mass": {"positive": positive, "negative": 1 - positive}},
    )


def test_stability_index() -> None:
    even, skew = {"a": 0.5, "b": 0.5}, {"a": 0.9, "b": 0.1}
    # (0.4 ln 1.8 + (−0.4) ln 0.2), by hand
    assert drift.stability_index(even, skew) == pytest.approx(0.8788898, abs=1e-6)
    assert drift.stability_index(skew, even) == pytest.approx(0.8788898, abs=1e-6)
    assert drift.stability_index(even, even) == 0
    assert 0 < drift.stability_index({"a": 1.0}, {"a": 0.999, "new": 0.001}) < 0.01  # finite for an empty bin


def test_prevalence_of_a_rare_finding_is_seen_where_the_index_is_blind() -> None:
    then, now = ({"positive": share, "negative": 1 - share} for share in (0.002, 0.0004))
    assert drift.stability_index(then, now) < 0.01
    assert drift.prevalence_ratio(then, now, 112_120) == pytest.approx(0.2)
    assert drift.prevalence_ratio(then, now, 500) is None  # of 500 images none or one: noise


def test_profile_shares() -> None:
    studies = pd.DataFrame(
        {
            "patient_id": ["a", "a", "b", "c"], "view": ["PA", "AP", "PA", "PA"], "sex": ["M", "M", "F", None],
            "age_years": [5.0, 10.0, None, 95.0], "Mass": [1.0, 0.0, None, 0.0],
        }
    )  # fmt: skip
    whole = drift.profile([drift.count(studies, ["Mass"])])
    parts = [drift.count(rows, ["Mass"]) for _, rows in studies.groupby("patient_id")]
    assert drift.profile(parts) == whole
    assert whole.rows == 4
    assert whole.patients == 3
    assert whole.columns["age_years"] == {"0+": 0.25, "10+": 0.25, "90+": 0.25, "unknown": 0.25}
    assert whole.columns["sex"] == {"F": 0.25, "M": 0.5, "unknown": 0.25}
    assert whole.labels["Mass"] == {"negative": 0.5, "positive": 0.25, "unknown": 0.25}
    differences = drift.compare(whole, Profile.model_validate_json(whole.model_dump_json()))
    assert (differences["psi"].dropna() == 0).all()
    assert differences["rows"].dropna().tolist() == [1.0]
    assert set(drift.describe(differences, LIMITS)) == {""}
    assert len(differences) == 1 + 3 + 1
    assert "Mass" in set(differences["item"])


def test_each_measure_names_what_is_beyond_its_limit() -> None:
    differences = drift.compare(profile(), profile(rows=800, positive=0.05, pa=0.9)).set_index("item")
    assert differences["psi"]["view"] == pytest.approx(0.4 * math.log(9))
    assert differences["ratio"]["Mass"] == pytest.approx(0.05 / 0.3)
    assert differences["rows"]["rows"] == 0.8
    beyond = drift.describe(differences.reset_index(), LIMITS)
    assert beyond == drift.Beyond(psi="view 0.879, Mass 0.524", ratio="Mass 0.167", rows="rows 0.8")


def test_at_its_limit_nothing_is_beyond() -> None:
    differences = drift.compare(profile(), profile(rows=int(1000 * LIMITS.rows)))
    assert drift.describe(differences, LIMITS) == ("", "", "")


def test_what_only_one_profile_has_is_not_compared() -> None:
    other = Profile(rows=10, columns={"sex": {"M": 1.0}}, labels={"Edema": {"positive": 1.0}})
    assert drift.compare(profile(), other)["item"].tolist() == ["rows"]


def test_an_accepted_profile_without_rows_divides_nothing_by_zero() -> None:
    assert drift.compare(profile(rows=0), profile(rows=5))["rows"][0] == 5.0


@pytest.mark.parametrize("then", [{}, {"unknown": 1.0}], ids=["empty", "unknown"])
def test_no_known_label_has_no_prevalence(then: dict[str, float]) -> None:
    assert drift.prevalence_ratio(then, {"positive": 0.5, "negative": 0.5}, 1000) is None


def test_the_expectations_carry_the_measure_and_the_remedy_apart() -> None:
    far, near, prevalence, rows = drift_expectations(LIMITS, drift.Beyond("view 0.9", "", "rows 0.8"))
    assert (far.max_value, near.max_value, rows.min_value) == (LIMITS.fail, LIMITS.warn, LIMITS.rows)
    assert prevalence.min_value == 1 / prevalence.max_value == 1 / LIMITS.prevalence
    for expectation, observed in ((far, "view 0.9"), (near, "view 0.9"), (rows, "rows 0.8")):
        assert (expectation.meta["kind"], expectation.meta["observed"]) == ("drift", observed)
        assert expectation.meta["remedy"] == ACCEPT
    assert "observed" not in prevalence.meta
