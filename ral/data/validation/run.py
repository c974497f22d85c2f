"""Runs Great Expectations on a source's raw rows, its images and their drift, and summarizes the results.

Rows are checked one partition at a time (`ral.data.tables.partitions`) on Dask's workers, and the results are
merged. The validation does not depend on the number of partitions.
"""

import gc
import os
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

# Great Expectations reads this on import: telemetry is disabled by default.
os.environ.setdefault("GX_ANALYTICS_ENABLED", "False")

import great_expectations as gx

from ral.compute.dask_pool import Report, open_pool
from ral.config.dask import DaskTarget
from ral.data.sources.base import Layout, Source, label_names
from ral.data.tables.duplicates import same_content
from ral.data.tables.partitions import Partition, Partitions, find_repeated, image_sizes
from ral.data.validation import drift
from ral.data.validation.data_docs import write_page
from ral.data.validation.expectations import (
    IMAGE_PRESENT,
    RowFacts,
    derive_check_columns,
    drift_expectations,
    raw_expectations,
    suggest_closest,
)
from ral.data.validation.missing_images import describe_missing
from ral.labels import PHANTOM_PREFIX

# Sample rows shown for a failed check.
SAMPLES = 5

# Pages of the Data Docs.
TABLE_PAGE = "raw_label_table"
DRIFT_PAGE = "accepted_profile"

# Great Expectations has one context per process; the lock also keeps only one partition in memory.
_CONTEXT_LOCK = threading.Lock()


@dataclass(frozen=True)
class PartitionResult:
    """Result of checking one partition.

    Attributes:
        counts: result of `ral.data.validation.drift.count`.
        phantom: whether any image is a phantom.
        rows_without_image: number of rows without an image.
        results: results of Great Expectations, each with `samples`: {index, row, image_id, value}.
    """

    counts: dict[str, Any]
    phantom: bool
    rows_without_image: int
    results: list[dict[str, Any]]


def check_rows(
    source: Source, rows: Partitions, images: pd.DataFrame, target: DaskTarget, progress: Report, docs: Path
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Run the expectations on the rows of a source and write Data Docs.

    Args:
        source: the source, with its parameters (`data.missing_images`).
        rows: all raw rows of the source.
        images: image_id, bytes and hash of every image file.
        target: where Dask runs; it does not affect the result.
        progress: called with the number of newly checked rows.
        docs: folder for the Data Docs; written even if the data is rejected, so it is not a DVC output.

    Returns:
        A summary of the table (phantom, rows, patients, images, rows_without_image, images_without_row,
        profile); and one dict per check: check, column, severity (error or warning), passed, unexpected
        (rows), samples ({row, image_id, value}) and remedy.
    """
    layout, parts = source.layout, rows.all()
    sizes, images_without_row = image_sizes(parts, layout.image, images)
    ids = find_repeated(parts, layout.image)
    files = (
        find_repeated(parts, layout.path) if layout.path else [np.zeros(len(size), bool) for size in sizes]
    )
    same = same_content(parts, layout.image, layout.patient, images)
    known = [RowFacts(*row) for row in zip(sizes, ids, files, same, strict=True)]
    items = [(source, *item) for item in zip(parts, known, strict=True)]
    # A single partition is checked here: starting a worker would take longer.
    with open_pool(target if len(parts) > 1 else DaskTarget(workers=1)) as pool:
        partition_results: list[PartitionResult] = pool.run(
            check_partition, items, [len(size) for size in sizes], progress
        )
    profile = drift.profile([part.counts for part in partition_results])
    summary = {
        "phantom": any(part.phantom for part in partition_results),
        "rows": profile["rows"],
        "patients": profile["patients"],
        "images": len(images),
        "rows_without_image": sum(part.rows_without_image for part in partition_results),
        "images_without_row": images_without_row,
        "profile": profile,
    }
    results = [
        merge_partition_results(parts)
        for parts in zip(*(part.results for part in partition_results), strict=True)
    ]
    for item in results:
        if item["expectation_config"]["meta"]["check"] == IMAGE_PRESENT:
            samples = item["samples"]
            descriptions = describe_missing(
                source.root, [s["value"] for s in samples], images, bool(layout.path)
            )
            item["samples"] = [s | {"value": text} for s, text in zip(samples, descriptions, strict=True)]
    checks = [_reduce(item, layout) for item in results]
    write_page(TABLE_PAGE, "Label table", checks, results, docs)
    return summary, checks


def check_partition(source: Source, part: Partition, known: RowFacts, report: Report) -> PartitionResult:
    """Run the expectations on one partition; a Dask task."""
    layout = source.layout
    with _CONTEXT_LOCK:
        raw = part.read()
        row_index, raw = raw.index.to_numpy(), raw.reset_index(drop=True)
        counts = drift.count(source.to_studies(raw), label_names(layout.labels))
        table = derive_check_columns(raw, layout, known)
        results = _evaluate(table, raw_expectations(layout, source.config.missing_images))
    for item in results:
        item["samples"] = [
            {"index": int(row_index[position]), **_sample(table.iloc[position], item, layout)}
            for position in item["result"].get("partial_unexpected_index_list") or []
        ]
    report(len(raw))
    phantom = bool(raw[layout.image].str.startswith(PHANTOM_PREFIX).any())
    return PartitionResult(counts, phantom, int(np.isnan(known.image_bytes).sum()), results)


def check_drift(
    accepted: dict[str, Any], profile: dict[str, Any], source: Source, docs: Path
) -> list[dict[str, Any]]:
    """Run the expectations on drift from the accepted profile; returns checks as `check_rows` does."""
    limits, differences = source.config.drift, drift.compare(accepted, profile)
    expectations = drift_expectations(limits, drift.describe(differences, limits))
    results = [
        merge_partition_results([item | {"samples": []}]) for item in _evaluate(differences, expectations)
    ]
    checks = [_reduce(item, source.layout) for item in results]
    checks = [check | {"remedy": "" if check["passed"] else check["remedy"]} for check in checks]
    write_page(DRIFT_PAGE, "Drift from the accepted profile", checks, results, docs)
    return checks


def _evaluate(table: pd.DataFrame, expectations: list[Any]) -> list[dict[str, Any]]:
    """Validate a table with Great Expectations; results are in the order of the expectations."""
    context: Any = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}
    asset = context.data_sources.add_pandas("rows").add_dataframe_asset("rows")
    batch = asset.add_batch_definition_whole_dataframe("all").get_batch({"dataframe": table})
    result = batch.validate(
        gx.ExpectationSuite(name="checks", expectations=expectations),
        # Rows are identified by position: looking up columns for 100,000 unexpected rows takes many seconds.
        result_format={"result_format": "SUMMARY", "partial_unexpected_count": SAMPLES},
    )
    order = [expectation.meta["check"] for expectation in expectations]
    items = [item.to_json_dict() for item in result.results]
    del context, asset, batch, result
    gc.collect()  # reference cycles would keep these rows in memory beside the next partition
    for item in items:
        crashes = [info for info in _exceptions(item["exception_info"]) if info.get("raised_exception")]
        if crashes:
            check = item["expectation_config"]["meta"]["check"]
            raise RuntimeError(f"{check}: {crashes[0]['exception_traceback']}")
    return sorted(items, key=lambda item: order.index(item["expectation_config"]["meta"]["check"]))


def merge_partition_results(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Merge one expectation's results on all partitions into its result on the whole table.

    Every expectation is about rows, so counts add up; sample rows are the first of all partitions.
    """
    results = [part["result"] for part in parts]
    total = {
        name: sum(result.get(name, 0) for result in results)
        for name in ("element_count", "missing_count", "unexpected_count")
    }
    known = total["element_count"] - total["missing_count"]
    shown = [
        (sample, value)
        for part, result in zip(parts, results, strict=True)
        for sample, value in zip(part["samples"], result.get("partial_unexpected_list") or [], strict=False)
    ]
    shown = sorted(shown, key=lambda pair: pair[0]["index"])[:SAMPLES]
    values = [value for _, value in shown]
    counts = Counter(map(str, values))
    percentages = {
        "missing_percent": _percent(total["missing_count"], total["element_count"]),
        "unexpected_percent": _percent(total["unexpected_count"], known),
        "unexpected_percent_nonmissing": _percent(total["unexpected_count"], known),
        "unexpected_percent_total": _percent(total["unexpected_count"], total["element_count"]),
    }
    result = {name: value for name, value in (total | percentages).items() if name in results[0]}
    return parts[0] | {
        "success": all(part["success"] for part in parts),
        "samples": [sample for sample, _ in shown],
        "result": result
        | {
            "partial_unexpected_list": values,
            "partial_unexpected_counts": [
                {"value": value, "count": number} for value, number in counts.items()
            ],
            "partial_unexpected_index_list": [sample["index"] for sample, _ in shown],
        },
    }


def _percent(part: int, whole: int) -> float | None:
    return 100 * part / whole if whole else None


def _sample(row: pd.Series, item: dict[str, Any], layout: Layout) -> dict[str, Any]:
    """Sample entry for an unexpected row."""
    column = _shown(item)
    # For a derived column, show the cell that it was derived from, if there is one.
    cell = column if column in row.index else item["expectation_config"]["kwargs"].get("column", "")
    return {"row": int(row["row"]), "image_id": row[layout.image], "value": _text(row.get(cell))}


def _shown(item: dict[str, Any]) -> str:
    config = item["expectation_config"]
    return str(config["meta"]["shown"] or " + ".join(config["kwargs"]["column_list"]))


def _reduce(item: dict[str, Any], layout: Layout) -> dict[str, Any]:
    """Reduce a result of Great Expectations to what people need, without run ids and times."""
    config = item["expectation_config"]
    samples = [{name: value for name, value in s.items() if name != "index"} for s in item["samples"]]
    remedy = config["meta"]["remedy"]
    if not item["success"] and config["kwargs"].get("column") == "label_problem":
        remedy = suggest_closest([sample["value"] or "" for sample in samples], layout) + remedy
    return {
        "check": config["meta"]["check"],
        "column": _shown(item),
        "severity": "error" if config["severity"] == "critical" else "warning",
        "passed": item["success"],
        "unexpected": item["result"]["unexpected_count"],
        "samples": samples,
        "remedy": remedy,
    }


def _exceptions(info: dict[str, Any]) -> list[dict[str, Any]]:
    """Great Expectations returns one exception record, or a dict of them by metric."""
    return [info] if "raised_exception" in info else list(info.values())


def _text(value: Any) -> str | None:
    return None if value is None or value != value else str(value)
