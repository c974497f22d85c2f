"""Great Expectations on a source's raw rows, its images and their drift, reduced to one validation.

The rows are checked a partition at a time (`ral.data.tables.partitions`), as calls that Dask spreads over its workers; what is
found is added up. However many partitions there are, the validation is the same.
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

# Great Expectations reads this when it is imported: usage statistics only for who asks for them.
os.environ.setdefault("GX_ANALYTICS_ENABLED", "False")

import great_expectations as gx

from ral.compute.dask_pool import Report, open_pool
from ral.config.dask import DaskTarget
from ral.data.sources.base import Layout, Source, label_names
from ral.data.tables.duplicates import same_content
from ral.data.tables.partitions import Partition, Partitions, image_sizes, repeated
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

# Rows shown of what broke a check.
SAMPLES = 5

# Pages of the Data Docs.
TABLE_PAGE = "raw_label_table"
DRIFT_PAGE = "accepted_profile"

# Great Expectations keeps one context for a whole process; and so one partition at a time is in its memory.
_ONE_AT_A_TIME = threading.Lock()


@dataclass(frozen=True)
class PartitionResult:
    """What was found in rows of a source.

    Attributes:
        counts: of `ral.data.validation.drift.count`.
        phantom: whether an image is a phantom's.
        rows_without_image: how many.
        results: Great Expectations', each with `samples`: {place, row, image_id, value}.
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
        source: the source; `data.missing_images` is in its parameters.
        rows: all its raw rows.
        images: image_id, bytes and hash of every image found.
        target: where the work is done; it changes nothing that is found.
        progress: told of checked rows.
        docs: folder for the Data Docs; it is there even of data that was refused, so it is no DVC output.

    Returns:
        Facts of the table (phantom, rows, patients, images, rows_without_image, images_without_row, profile); and one
        dict per check: check, column, severity (error or warning), passed, unexpected (rows), samples ({row, image_id,
        value}) and remedy.
    """
    layout, parts = source.layout, rows.all()
    sizes, images_without_row = image_sizes(parts, layout.image, images)
    ids = repeated(parts, layout.image)
    files = repeated(parts, layout.path) if layout.path else [np.zeros(len(size), bool) for size in sizes]
    same = same_content(parts, layout.image, layout.patient, images)
    known = [RowFacts(*row) for row in zip(sizes, ids, files, same, strict=True)]
    items = [(source, *item) for item in zip(parts, known, strict=True)]
    # One partition is sooner checked here than a worker is started.
    with open_pool(target if len(parts) > 1 else DaskTarget(workers=1)) as pool:
        found: list[PartitionResult] = pool.run(
            check_partition, items, [len(size) for size in sizes], progress
        )
    profile = drift.profile([part.counts for part in found])
    facts = {
        "phantom": any(part.phantom for part in found),
        "rows": profile["rows"],
        "patients": profile["patients"],
        "images": len(images),
        "rows_without_image": sum(part.rows_without_image for part in found),
        "images_without_row": images_without_row,
        "profile": profile,
    }
    results = [merged(same) for same in zip(*(part.results for part in found), strict=True)]
    for item in results:
        if item["expectation_config"]["meta"]["check"] == IMAGE_PRESENT:
            samples = item["samples"]
            told = describe_missing(source.root, [s["value"] for s in samples], images, bool(layout.path))
            item["samples"] = [s | {"value": text} for s, text in zip(samples, told, strict=True)]
    checks = [_reduce(item, layout) for item in results]
    write_page(TABLE_PAGE, "Label table", checks, results, docs)
    return facts, checks


def check_partition(source: Source, part: Partition, known: RowFacts, report: Report) -> PartitionResult:
    """Run the expectations on one partition; called by a worker."""
    layout = source.layout
    with _ONE_AT_A_TIME:
        raw = part.read()
        places, raw = raw.index.to_numpy(), raw.reset_index(drop=True)
        counts = drift.count(source.to_studies(raw), label_names(layout.labels))
        table = derive_check_columns(raw, layout, known)
        results = _evaluate(table, raw_expectations(layout, source.config.missing_images))
    for item in results:
        item["samples"] = [
            {"place": int(places[place]), **_sample(table.iloc[place], item, layout)}
            for place in item["result"].get("partial_unexpected_index_list") or []
        ]
    report(len(raw))
    phantom = bool(raw[layout.image].str.startswith(PHANTOM_PREFIX).any())
    return PartitionResult(counts, phantom, int(np.isnan(known.image_bytes).sum()), results)


def check_drift(
    accepted: dict[str, Any], profile: dict[str, Any], source: Source, docs: Path
) -> list[dict[str, Any]]:
    """Run the expectations on how a profile differs from the accepted one; checks as of `check_rows`."""
    limits, differences = source.config.drift, drift.compare(accepted, profile)
    expectations = drift_expectations(limits, drift.describe(differences, limits))
    results = [merged([item | {"samples": []}]) for item in _evaluate(differences, expectations)]
    checks = [_reduce(item, source.layout) for item in results]
    checks = [check | {"remedy": "" if check["passed"] else check["remedy"]} for check in checks]
    write_page(DRIFT_PAGE, "Drift from the accepted profile", checks, results, docs)
    return checks


def _evaluate(table: pd.DataFrame, expectations: list[Any]) -> list[dict[str, Any]]:
    """Great Expectations' results on a table, in the order of the expectations."""
    context: Any = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}
    asset = context.data_sources.add_pandas("rows").add_dataframe_asset("rows")
    batch = asset.add_batch_definition_whole_dataframe("all").get_batch({"dataframe": table})
    result = batch.validate(
        gx.ExpectationSuite(name="checks", expectations=expectations),
        # Rows are named by their place: looking up columns for each of 100,000 unexpected rows takes many seconds.
        result_format={"result_format": "SUMMARY", "partial_unexpected_count": SAMPLES},
    )
    order = [expectation.meta["check"] for expectation in expectations]
    items = [item.to_json_dict() for item in result.results]
    del context, asset, batch, result
    gc.collect()  # they refer to each other, and would keep the rows beside those of the next partition
    for item in items:
        crashes = [info for info in _exceptions(item["exception_info"]) if info.get("raised_exception")]
        if crashes:
            check = item["expectation_config"]["meta"]["check"]
            raise RuntimeError(f"{check}: {crashes[0]['exception_traceback']}")
    return sorted(items, key=lambda item: order.index(item["expectation_config"]["meta"]["check"]))


def merged(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One expectation's result on a table from its results on the table's partitions.

    Every expectation is about rows, so counts add up, and the first unexpected rows are the first of all partitions'.
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
    shown = sorted(shown, key=lambda pair: pair[0]["place"])[:SAMPLES]
    values = [value for _, value in shown]
    counts = Counter(map(str, values))
    shares = {
        "missing_percent": _percent(total["missing_count"], total["element_count"]),
        "unexpected_percent": _percent(total["unexpected_count"], known),
        "unexpected_percent_nonmissing": _percent(total["unexpected_count"], known),
        "unexpected_percent_total": _percent(total["unexpected_count"], total["element_count"]),
    }
    result = {name: value for name, value in (total | shares).items() if name in results[0]}
    return parts[0] | {
        "success": all(part["success"] for part in parts),
        "samples": [sample for sample, _ in shown],
        "result": result
        | {
            "partial_unexpected_list": values,
            "partial_unexpected_counts": [
                {"value": value, "count": number} for value, number in counts.items()
            ],
            "partial_unexpected_index_list": [sample["place"] for sample, _ in shown],
        },
    }


def _percent(part: int, whole: int) -> float | None:
    return 100 * part / whole if whole else None


def _sample(row: pd.Series, item: dict[str, Any], layout: Layout) -> dict[str, Any]:
    """What is shown of an unexpected row."""
    column = _shown(item)
    # A derived column is shown by the cell that it was made from, where there is one.
    cell = column if column in row.index else item["expectation_config"]["kwargs"].get("column", "")
    return {"row": int(row["row"]), "image_id": row[layout.image], "value": _text(row.get(cell))}


def _shown(item: dict[str, Any]) -> str:
    config = item["expectation_config"]
    return str(config["meta"]["shown"] or " + ".join(config["kwargs"]["column_list"]))


def _reduce(item: dict[str, Any], layout: Layout) -> dict[str, Any]:
    """What a reader needs of one of Great Expectations' results, without its run ids and times."""
    config = item["expectation_config"]
    samples = [{name: value for name, value in s.items() if name != "place"} for s in item["samples"]]
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
    """Great Expectations gives one exception record, or a dict of them by metric."""
    return [info] if "raised_exception" in info else list(info.values())


def _text(value: Any) -> str | None:
    return None if value is None or value != value else str(value)
