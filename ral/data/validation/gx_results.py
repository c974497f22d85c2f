"""Runs Great Expectations on a table, and merges the results of its partitions.

This is the only module that knows the form of Great Expectations' results.
"""

import gc
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import pandas as pd

# Great Expectations reads this on import: telemetry is disabled by default.
os.environ.setdefault("GX_ANALYTICS_ENABLED", "False")

import great_expectations as gx
from great_expectations.expectations.expectation import Expectation

from ral.data.validation.expectations import CheckMeta
from ral.data.validation.result import Sample

# Sample rows shown for a failed check.
SAMPLES = 5


@dataclass(frozen=True)
class RowSample:
    """A row that failed, with its position in the whole table."""

    position: int
    sample: Sample


@dataclass(frozen=True)
class ExpectationResult:
    """Result of one expectation.

    Attributes:
        outcome: what Great Expectations returns, as JSON.
        samples: the first rows that failed; none until `check_partition` has described them.
    """

    outcome: dict[str, Any]
    samples: tuple[RowSample, ...] = ()

    @property
    def meta(self) -> CheckMeta:
        """What people need to know about the check."""
        return CheckMeta(**self.outcome["expectation_config"]["meta"])

    @property
    def passed(self) -> bool:
        """Whether all rows are as expected."""
        return bool(self.outcome["success"])

    @property
    def critical(self) -> bool:
        """Whether the data is rejected if the check fails."""
        return bool(self.outcome["expectation_config"]["severity"] == "critical")

    @property
    def columns(self) -> list[str]:
        """The columns that are checked."""
        arguments = self.outcome["expectation_config"]["kwargs"]
        return list(arguments["column_list"]) if "column_list" in arguments else [arguments["column"]]

    @property
    def unexpected(self) -> int:
        """Number of rows that failed."""
        return int(self.outcome["result"]["unexpected_count"])

    @property
    def failed_rows(self) -> list[int]:
        """Positions in the checked table of the first rows that failed."""
        return list(self.outcome["result"].get("partial_unexpected_index_list") or [])


def evaluate(table: pd.DataFrame, expectations: Sequence[Expectation]) -> list[ExpectationResult]:
    """Validate a table; results are in the order of the expectations.

    Raises:
        RuntimeError: an expectation could not be evaluated.
    """
    context: Any = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}
    asset = context.data_sources.add_pandas("rows").add_dataframe_asset("rows")
    batch = asset.add_batch_definition_whole_dataframe("all").get_batch({"dataframe": table})
    result = batch.validate(
        gx.ExpectationSuite(name="checks", expectations=list(expectations)),
        # Rows are identified by position: looking up columns for 100,000 unexpected rows takes many seconds.
        result_format={"result_format": "SUMMARY", "partial_unexpected_count": SAMPLES},
    )
    order = [cast(dict[str, Any], expectation.meta)["check"] for expectation in expectations]
    results = [ExpectationResult(item.to_json_dict()) for item in result.results]
    del context, asset, batch, result
    gc.collect()  # reference cycles would keep these rows in memory beside the next partition
    for item in results:
        for record in _exceptions(item.outcome["exception_info"]):
            if record.get("raised_exception"):
                raise RuntimeError(f"{item.meta.check}: {record['exception_traceback']}")
    return sorted(results, key=lambda item: order.index(item.meta.check))


def _exceptions(info: dict[str, Any]) -> Iterable[dict[str, Any]]:
    """Great Expectations returns one exception record, or a dict of them by metric."""
    return [info] if "raised_exception" in info else info.values()


def merge(parts: Sequence[ExpectationResult]) -> ExpectationResult:
    """Merge one expectation's results on all partitions into its result on the whole table.

    Every expectation is about rows, so counts add up; sample rows are the first of all partitions.
    """
    results = [part.outcome["result"] for part in parts]
    total = {
        name: sum(result.get(name, 0) for result in results)
        for name in ("element_count", "missing_count", "unexpected_count")
    }
    known = total["element_count"] - total["missing_count"]
    shown = [
        (sample, value)
        for part, result in zip(parts, results, strict=True)
        for sample, value in zip(part.samples, result.get("partial_unexpected_list") or [], strict=False)
    ]
    shown = sorted(shown, key=lambda pair: pair[0].position)[:SAMPLES]
    values = [value for _, value in shown]
    counts = Counter(map(str, values))
    percentages = {
        "missing_percent": _percent(total["missing_count"], total["element_count"]),
        "unexpected_percent": _percent(total["unexpected_count"], known),
        "unexpected_percent_nonmissing": _percent(total["unexpected_count"], known),
        "unexpected_percent_total": _percent(total["unexpected_count"], total["element_count"]),
    }
    result = {name: value for name, value in (total | percentages).items() if name in results[0]}
    examples = {
        "partial_unexpected_list": values,
        "partial_unexpected_counts": [{"value": value, "count": number} for value, number in counts.items()],
        "partial_unexpected_index_list": [sample.position for sample, _ in shown],
    }
    outcome = {"success": all(part.passed for part in parts), "result": result | examples}
    return replace(parts[0], outcome=parts[0].outcome | outcome, samples=tuple(sample for sample, _ in shown))


def _percent(part: int, whole: int) -> float | None:
    return 100 * part / whole if whole else None
