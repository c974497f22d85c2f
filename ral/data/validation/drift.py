"""Measures drift of a delivery from the accepted one: profiles of tables and the population stability index (PSI).

Pure functions. Accept a profile with `python -m ral.data.baseline profile`.
"""

import math
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd

from ral.config.data import DriftConfig

# Lower bounds of the age bins, in years; the last bin is open.
AGE_BINS = (0, 10, 20, 30, 40, 50, 60, 70, 80, 90)
# Minimum share in the index: an empty bin would make it infinite.
MIN_SHARE = 1e-4
# A change in prevalence counts only if it exceeds this many standard errors.
MIN_STANDARD_ERRORS = 3.0


def count(studies: pd.DataFrame, findings: Sequence[str]) -> dict[str, Any]:
    """Count values in some rows of a table, for `profile`; counts of disjoint patients add up.

    Args:
        studies: all rows of some patients, as `ral.data.sources.base.Source.to_studies` gives them.
        findings: the label columns.

    Returns:
        {"rows", "patients", "columns": {name: {value: rows}}, "labels": {finding: {value: rows}}}.
    """
    age = pd.cut(
        studies["age_years"], [*AGE_BINS, np.inf], right=False, labels=[f"{low}+" for low in AGE_BINS]
    )
    columns = {"view": studies["view"], "sex": studies["sex"], "age_years": age.astype("str")}
    values = {1.0: "positive", 0.0: "negative"}
    labels = {finding: studies[finding].map(values).astype("str") for finding in findings}
    return {
        "rows": len(studies),
        "patients": int(studies["patient_id"].nunique()),
        "columns": {name: _counts(column) for name, column in columns.items()},
        "labels": {finding: _counts(column) for finding, column in labels.items()},
    }


def profile(counts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Profile of a table: rows, patients, and the shares of views, sexes, ages and label values.

    Args:
        counts: results of `count` for parts of the table with disjoint patients.

    Returns:
        {"rows", "patients", "columns": {name: {value: share}}, "labels": {finding: {value: share}}}; shares are
        rounded to 9 digits and sum to 1.
    """
    rows = sum(part["rows"] for part in counts)
    return {
        "rows": rows,
        "patients": sum(part["patients"] for part in counts),
        **{
            kind: {name: _shares([part[kind][name] for part in counts], rows) for name in counts[0][kind]}
            for kind in ("columns", "labels")
        },
    }


def _counts(column: pd.Series) -> dict[str, int]:
    return {str(name): int(number) for name, number in column.fillna("unknown").value_counts().items()}


def _shares(parts: Sequence[dict[str, int]], rows: int) -> dict[str, float]:
    total: Counter[str] = Counter()
    for part in parts:
        total.update(part)
    return {name: round(number / rows, 9) for name, number in sorted(total.items())}


def stability_index(then: dict[str, float], now: dict[str, float], floor: float = MIN_SHARE) -> float:
    """Population stability index: the sum of (now − then) · ln(now / then) over the shares of the values,
    each at least `floor`.

    It is 0 for equal shares, symmetric, and equal to the sum of both Kullback-Leibler divergences.
    """
    names = sorted(then.keys() | now.keys())
    pairs = [(max(then.get(name, 0.0), floor), max(now.get(name, 0.0), floor)) for name in names]
    # Decimal logarithm and exact sum give the same digits on every processor; values are reported and
    # compared with limits.
    return math.fsum((new - old) * float(Decimal(new / old).ln()) for old, new in pairs)


def compare(accepted: dict[str, Any], current: dict[str, Any]) -> pd.DataFrame:
    """Compare two profiles.

    Returns:
        item (column, finding, or "rows"), psi, ratio (of a finding's prevalence to the accepted one, null if the
        difference is below MIN_STANDARD_ERRORS), rows (only for "rows": now / then). Columns and findings that only
        one profile has are not compared.
    """
    rows: list[dict[str, Any]] = [{"item": "rows", "rows": current["rows"] / max(accepted["rows"], 1)}]
    for kind in ("columns", "labels"):
        for item, then in accepted[kind].items():
            if item not in current[kind]:
                continue
            now = current[kind][item]
            ratio = prevalence_ratio(then, now, current["rows"]) if kind == "labels" else None
            rows.append({"item": item, "psi": stability_index(then, now), "ratio": ratio})
    return pd.DataFrame(rows, columns=["item", "psi", "ratio", "rows"]).astype(
        {"psi": "float64", "ratio": "float64", "rows": "float64"}
    )


def prevalence_ratio(then: dict[str, float], now: dict[str, float], rows: int) -> float | None:
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


def _prevalence(shares: dict[str, float]) -> float | None:
    known = shares.get("positive", 0.0) + shares.get("negative", 0.0)
    return shares.get("positive", 0.0) / known if known else None


def describe(differences: pd.DataFrame, limits: DriftConfig) -> dict[str, str]:
    """Text per column of `compare`: the items beyond their limit, or ""."""
    ratio = differences["ratio"]
    beyond = {
        "psi": differences["psi"] > limits.warn,
        "ratio": (ratio > limits.prevalence) | (ratio < 1 / limits.prevalence),
        "rows": differences["rows"] < limits.rows,
    }
    return {
        name: ", ".join(
            f"{item} {value:.3g}" for item, value in differences.loc[mask, ["item", name]].to_numpy()
        )
        for name, mask in beyond.items()
    }
