"""Measures drift of a delivery from the accepted one: profiles of tables and the population stability index (PSI).

Pure functions. Accept a profile with `python -m ral.data.baseline profile`.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import NamedTuple

import numpy as np
import pandas as pd

from ral.config.data import DriftConfig
from ral.data.validation.result import Profile

# Lower bounds of the age bins, in years; the last bin is open.
AGE_BINS = (0, 10, 20, 30, 40, 50, 60, 70, 80, 90)
# Minimum share in the index: an empty bin would make it infinite.
MIN_SHARE = 1e-4
# A change in prevalence counts only if it exceeds this many standard errors.
MIN_STANDARD_ERRORS = 3.0


@dataclass(frozen=True)
class Counts:
    """Rows and patients of a part of a table, and rows by value of its columns and findings."""

    rows: int
    patients: int
    columns: Mapping[str, Mapping[str, int]]
    labels: Mapping[str, Mapping[str, int]]


class Beyond(NamedTuple):
    """Items beyond the limit on each measure of `compare`, as text; "" if there are none."""

    psi: str
    ratio: str
    rows: str


def count(studies: pd.DataFrame, findings: Sequence[str]) -> Counts:
    """Count values in some rows of a table, for `profile`; counts of disjoint patients add up.

    Args:
        studies: all rows of some patients, as `ral.data.sources.base.Source.to_studies` gives them.
        findings: the label columns.
    """
    age = pd.cut(
        studies["age_years"], [*AGE_BINS, np.inf], right=False, labels=[f"{low}+" for low in AGE_BINS]
    )
    columns = {"view": studies["view"], "sex": studies["sex"], "age_years": age.astype("str")}
    values = {1.0: "positive", 0.0: "negative"}
    labels = {finding: studies[finding].map(values).astype("str") for finding in findings}
    return Counts(
        rows=len(studies),
        patients=int(studies["patient_id"].nunique()),
        columns={name: _counts(column) for name, column in columns.items()},
        labels={finding: _counts(column) for finding, column in labels.items()},
    )


def profile(counts: Sequence[Counts]) -> Profile:
    """Profile of a table: rows, patients, and the shares of views, sexes, ages and label values.

    Shares are rounded to 9 digits and sum to 1.

    Args:
        counts: results of `count` for parts of the table with disjoint patients.
    """
    rows = sum(part.rows for part in counts)
    first = counts[0]
    return Profile(
        rows=rows,
        patients=sum(part.patients for part in counts),
        columns={name: _shares([part.columns[name] for part in counts], rows) for name in first.columns},
        labels={name: _shares([part.labels[name] for part in counts], rows) for name in first.labels},
    )


def _counts(column: pd.Series) -> dict[str, int]:
    return {str(name): int(number) for name, number in column.fillna("unknown").value_counts().items()}


def _shares(parts: Sequence[Mapping[str, int]], rows: int) -> dict[str, float]:
    total: Counter[str] = Counter()
    for part in parts:
        total.update(part)
    return {name: round(number / rows, 9) for name, number in sorted(total.items())}


def stability_index(then: Mapping[str, float], now: Mapping[str, float], floor: float = MIN_SHARE) -> float:
    """Population stability index: the sum of (now − then) · ln(now / then) over the shares of the values,
    each at least `floor`.

    It is 0 for equal shares, symmetric, and equal to the sum of both Kullback-Leibler divergences.
    """
    names = sorted(then.keys() | now.keys())
    pairs = [(max(then.get(name, 0.0), floor), max(now.get(name, 0.0), floor)) for name in names]
    # Decimal logarithm and exact sum give the same digits on every processor; values are reported and
    # compared with limits.
    return math.fsum((new - old) * float(Decimal(new / old).ln()) for old, new in pairs)


def compare(accepted: Profile, current: Profile) -> pd.DataFrame:
    """Compare two profiles.

    Returns:
        item (column, finding, or "rows"), psi, ratio (of a finding's prevalence to the accepted one, null if the
        difference is below MIN_STANDARD_ERRORS), rows (only for "rows": now / then). Columns and findings that only
        one profile has are not compared.
    """
    rows: list[tuple[str, float | None, float | None, float | None]] = [
        ("rows", None, None, current.rows / max(accepted.rows, 1))
    ]
    for item, then in accepted.columns.items():
        if (now := current.columns.get(item)) is not None:
            rows.append((item, stability_index(then, now), None, None))
    for item, then in accepted.labels.items():
        if (now := current.labels.get(item)) is not None:
            ratio = prevalence_ratio(then, now, current.rows)
            rows.append((item, stability_index(then, now), ratio, None))
    return pd.DataFrame(rows, columns=["item", "psi", "ratio", "rows"]).astype(
        {"psi": "float64", "ratio": "float64", "rows": "float64"}
    )


def prevalence_ratio(then: Mapping[str, float], now: Mapping[str, float], rows: int) -> float | None:
    """Prevalence now over prevalence then, among known labels; None if the difference may be noise.

    The PSI hardly changes when the prevalence of a 0.2 % finding halves; this ratio does.
    """
    old, new = _prevalence(then), _prevalence(now)
    if old is None or new is None:
        return None
    known = rows * (now.get("positive", 0.0) + now.get("negative", 0.0))
    error = math.sqrt(max(old, MIN_SHARE) * (1 - old) / max(known, 1))
    if abs(new - old) <= MIN_STANDARD_ERRORS * error:
        return None
    return max(new, MIN_SHARE / 10) / max(old, MIN_SHARE / 10)


def _prevalence(shares: Mapping[str, float]) -> float | None:
    known = shares.get("positive", 0.0) + shares.get("negative", 0.0)
    return shares.get("positive", 0.0) / known if known else None


def describe(differences: pd.DataFrame, limits: DriftConfig) -> Beyond:
    """The items of `compare` beyond their limit, with their values."""
    ratio = differences["ratio"]
    beyond = {
        "psi": differences["psi"] > limits.warn,
        "ratio": (ratio > limits.prevalence) | (ratio < 1 / limits.prevalence),
        "rows": differences["rows"] < limits.rows,
    }
    return Beyond(
        *(
            ", ".join(
                f"{item} {value:.3g}"
                for item, value in differences.loc[beyond[name], ["item", name]].to_numpy()
            )
            for name in Beyond._fields
        )
    )
