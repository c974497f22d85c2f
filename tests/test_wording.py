"""Numbers as people read them: negative ends, zeros, p values."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ral import wording
from ral.evaluation.compare import COLUMNS
from ral.evaluation.compare import text as compared


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.38, 0.451, "0.380–0.451"),
        (-1.0, 0.0, "-1.000 to 0.000"),
        (-0.3, -0.1, "-0.300 to -0.100"),
        (-0.0004, 0.842, "0.000–0.842"),
        (-1.0, -0.0, "-1.000 to 0.000"),
        (None, 0.4, "no interval"),
        (np.nan, np.nan, "no interval"),
    ],
)
def test_a_range_with_a_negative_end_has_no_dash(low: float, high: float, expected: str) -> None:
    assert wording.interval(low, high) == expected
    assert wording.with_interval(-0.00001, low, high) == f"0.000 ({expected})"


def test_differences_have_a_sign_but_no_negative_zero() -> None:
    assert [wording.signed(value) for value in (0.01, -0.01, -0.0001, 0.0)] == [
        "+0.010",
        "-0.010",
        "+0.000",
        "+0.000",
    ]
    assert wording.signed_interval(-0.02, -0.0) == "-0.020 to +0.000"
    assert wording.signed_interval(None, 0.1) == "no interval"


def test_a_difference_has_its_interval_and_a_missing_one_no_number() -> None:
    assert wording.difference(0.01, -0.004, 0.025) == "+0.010 (-0.004 to +0.025)"
    assert wording.difference(-0.2, None, np.nan) == "-0.200 (no interval)"
    assert wording.difference(np.nan, np.nan, np.nan) == wording.difference(None, 0.1, 0.2) == "not estimable"


def test_there_is_one_notice_of_each_kind() -> None:
    """No other module spells out what `ral.wording` says, but for documentation."""
    root = Path(wording.__file__).parents[1]
    quoted = re.compile(r'^(?!.*"""|#).*["\'].*(?:PHANTOM DATA|[Rr]esearch software, not)', re.M)
    files = [path for part in ("ral", "flows", "tasks") for path in (root / part).rglob("*.py")]
    names = {path.relative_to(root).as_posix() for path in files if quoted.search(path.read_text())}
    assert names == {"ral/labels.py", "ral/wording.py"}


def test_no_p_is_zero() -> None:
    values = (0.05, 0.001, 0.0009, 1e-6, 0.0, 1.0, np.nan, None)
    shown = [wording.p_value(value) for value in values]
    assert shown == ["0.050", "0.001", "<0.001", "<0.001", "<0.001", "1.000", "none", "none"]


def test_the_comparison_prints_no_p_of_zero_and_no_missing_interval_as_a_number() -> None:
    row = {
        "metric": "ap",
        "level": "macro",
        "name": "macro",
        "model": "b",
        "baseline": "a",
        "findings": 3,
        "note": "",
    }
    row |= {
        "value": 0.5,
        "baseline_value": 0.4,
        "difference": 0.1,
        "low": 0.05,
        "high": 0.15,
        "p_holm": 1e-6,
        "data": "images",
    }
    shown = compared(pd.DataFrame([row], columns=list(COLUMNS)), 0.95, 10, 5, "test")
    assert "+0.100 (+0.050 to +0.150)  p <0.001" in shown
    bare = pd.DataFrame([row | {"low": np.nan, "high": np.nan, "p_holm": np.nan}], columns=list(COLUMNS))
    assert "+0.100 (no interval)  p none" in compared(bare, 0.95, 10, 5, "test")


def test_ranges_of_figures_are_written_in_one_place() -> None:
    """Only `ral.wording` formats intervals, except for one sentence of the gate."""
    root = Path(wording.__file__).parents[1]
    ends = re.compile(r"\['low'\][^}]*\}(–| to )|\.low\b[^}]*\}(–| to )")
    files = [path for part in ("ral", "flows", "tasks") for path in (root / part).rglob("*.py")]
    assert [path.name for path in files if ends.search(path.read_text())] == [
        "gate.py"
    ]  # macro AUROC, never negative
