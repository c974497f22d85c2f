"""Checks a source's raw rows, its images and their drift with Great Expectations, and summarizes the results.

Rows are checked one partition at a time (`ral.data.tables.partitions`) on Dask's workers, and the results are
merged. The validation does not depend on the number of partitions.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from ral.compute.dask_pool import Report, open_pool
from ral.config.dask import DaskTarget
from ral.data.sources.base import Layout, Source, label_names
from ral.data.tables.duplicates import same_content
from ral.data.tables.partitions import Partition, Partitions, find_repeated, image_sizes
from ral.data.validation import drift
from ral.data.validation.check_columns import RowFacts, derive_check_columns
from ral.data.validation.data_docs import write_page
from ral.data.validation.expectations import (
    IMAGE_PRESENT,
    drift_expectations,
    raw_expectations,
    suggest_closest,
)
from ral.data.validation.gx_results import ExpectationResult, RowSample, evaluate, merge
from ral.data.validation.missing_images import describe_missing
from ral.data.validation.result import Check, Profile, Sample, TableSummary
from ral.labels import PHANTOM_PREFIX

# Pages of the Data Docs.
TABLE_PAGE = "raw_label_table"
DRIFT_PAGE = "accepted_profile"

# Great Expectations has one context per process; the lock also keeps only one partition in memory.
_CONTEXT_LOCK = threading.Lock()


@dataclass(frozen=True)
class PartitionResult:
    """Result of checking one partition.

    Attributes:
        counts: counts of its rows and values.
        phantom: whether any image is a phantom.
        rows_without_image: number of rows without an image.
        results: one per expectation.
    """

    counts: drift.Counts
    phantom: bool
    rows_without_image: int
    results: Sequence[ExpectationResult]


def check_rows(
    source: Source, rows: Partitions, images: pd.DataFrame, target: DaskTarget, progress: Report, docs: Path
) -> tuple[TableSummary, list[Check]]:
    """Run the expectations on the rows of a source and write Data Docs.

    Args:
        source: the source, with its parameters (`data.missing_images`).
        rows: all raw rows of the source.
        images: image_id, bytes and hash of every image file.
        target: where Dask runs; it does not affect the result.
        progress: called with the number of newly checked rows.
        docs: folder for the Data Docs; written even if the data is rejected, so it is not a DVC output.
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
        checked: list[PartitionResult] = pool.run(
            check_partition, items, [len(size) for size in sizes], progress
        )
    profile = drift.profile([part.counts for part in checked])
    summary = TableSummary(
        phantom=any(part.phantom for part in checked),
        rows=profile.rows,
        patients=sum(part.counts.patients for part in checked),
        images=len(images),
        rows_without_image=sum(part.rows_without_image for part in checked),
        images_without_row=images_without_row,
        profile=profile,
    )
    results = [merge(parts) for parts in zip(*(part.results for part in checked), strict=True)]
    # The most similar file may be that of an excluded patient, who must not be named.
    if not source.config.exclude_patients:
        results = [
            _with_descriptions(item, source, images) if item.meta.check == IMAGE_PRESENT else item
            for item in results
        ]
    checks = [_reduce(item, layout) for item in results]
    write_page(TABLE_PAGE, "Label table", checks, results, docs)
    return summary, checks


def _with_descriptions(result: ExpectationResult, source: Source, images: pd.DataFrame) -> ExpectationResult:
    """The result about missing images, with the most similar files that were found."""
    wanted = [row.sample.value or "" for row in result.samples]
    described = describe_missing(source.root, wanted, images, bool(source.layout.path))
    samples = (
        replace(row, sample=row.sample.model_copy(update={"value": text}))
        for row, text in zip(result.samples, described, strict=True)
    )
    return replace(result, samples=tuple(samples))


def check_partition(source: Source, part: Partition, known: RowFacts, report: Report) -> PartitionResult:
    """Run the expectations on one partition; a Dask task."""
    layout = source.layout
    with _CONTEXT_LOCK:
        raw = part.read()
        positions, raw = raw.index.to_numpy(), raw.reset_index(drop=True)
        counts = drift.count(source.to_studies(raw), label_names(layout.labels))
        table = derive_check_columns(raw, layout, known)
        results = evaluate(table, raw_expectations(layout, source.config.missing_images))
    results = [
        replace(
            item,
            samples=tuple(
                RowSample(int(positions[row]), _sample(table.iloc[row], item, layout))
                for row in item.failed_rows
            ),
        )
        for item in results
    ]
    report(len(raw))
    phantom = bool(raw[layout.image].str.startswith(PHANTOM_PREFIX).any())
    return PartitionResult(counts, phantom, int(np.isnan(known.image_bytes).sum()), results)


def check_drift(accepted: Profile, profile: Profile, source: Source, docs: Path) -> list[Check]:
    """Run the expectations on drift from the accepted profile."""
    limits, differences = source.config.drift, drift.compare(accepted, profile)
    expectations = drift_expectations(limits, drift.describe(differences, limits))
    results = [merge([item]) for item in evaluate(differences, expectations)]
    checks = [
        check.model_copy(update={"observed": "", "remedy": ""}) if check.passed else check
        for check in (_reduce(item, source.layout) for item in results)
    ]
    write_page(DRIFT_PAGE, "Drift from the accepted profile", checks, results, docs)
    return checks


def _sample(row: "pd.Series[str]", item: ExpectationResult, layout: Layout) -> Sample:
    """Sample entry for an unexpected row."""
    column = _shown(item)
    # For a derived column, show the cell that it was derived from, if there is one.
    cell = column if column in row.index else item.columns[0] if len(item.columns) == 1 else ""
    return Sample(row=int(row["row"]), image_id=row[layout.image], value=_text(row.get(cell)))


def _shown(item: ExpectationResult) -> str:
    return item.meta.shown or " + ".join(item.columns)


def _reduce(item: ExpectationResult, layout: Layout) -> Check:
    """Reduce a result of Great Expectations to what people need, without run ids and times."""
    samples = [row.sample for row in item.samples]
    remedy = item.meta.remedy
    if not item.passed and item.columns == ["label_problem"]:
        remedy = suggest_closest([sample.value or "" for sample in samples], layout) + remedy
    return Check(
        kind=item.meta.kind,
        check=item.meta.check,
        column=_shown(item),
        severity="error" if item.critical else "warning",
        passed=item.passed,
        unexpected=item.unexpected,
        samples=samples,
        observed=item.meta.observed,
        remedy=remedy,
    )


def _text(value: object) -> str | None:
    return None if value is None or value != value else str(value)
