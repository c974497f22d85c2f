"""Writes a table of any number of rows in the memory of a few blocks, and counts what the later steps must know of it.

Blocks are transformed by Dask and written to Parquet as they come. Where the rows must stand in another order than in the
source (that of the films' pixels), they are spilled to buckets on disk first, each of which is then sorted by itself.
"""

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

# Rows of a bucket that is sorted by itself.
BUCKET_ROWS = 500_000

# Blocks in work for each worker; more would only take memory.
AHEAD = 2


@dataclass(frozen=True)
class Summary:
    """What a table holds.

    `patients` has patient_id and split, one row per patient, by patient_id. `counts` has per split films, and per
    finding positives, negatives and unknown.
    """

    rows: int
    patients: pd.DataFrame
    counts: dict[str, Any]


def write_table(
    blocks: Any,
    transform: Callable[[pd.DataFrame], pd.DataFrame],
    path: Path,
    findings: Sequence[str],
    splits: Sequence[str],
    workers: int,
    order: str | None = None,
) -> Summary:
    """Transform a table block by block into a Parquet file.

    Args:
        blocks: a Dask dataframe.
        transform: from a block to patient_id, split, one column per finding (1, 0, null) and any others.
        path: file to write.
        findings: columns to count.
        splits: values of the column split.
        workers: how many blocks are transformed at a time.
        order: column of whole numbers from 0 by which the rows are to be sorted; it is not written. None keeps them.

    Returns:
        Summary of what was written; the same for any number of workers.
    """
    frames = _transformed(blocks.to_delayed(), transform, workers)
    spill = path.parent / f".{path.name}.spill"
    pieces: list[pd.DataFrame] = []
    counts = np.zeros((len(splits), 1 + 3 * len(findings)), np.int64)

    def counted() -> Iterator[pd.DataFrame]:
        nonlocal counts
        for frame in frames:
            counts = counts + _count(frame, findings, splits)
            pieces.append(frame[["patient_id", "split"]].drop_duplicates())
            yield frame

    try:
        rows = _write(counted() if order is None else _sorted(counted(), order, spill), path)
    finally:
        shutil.rmtree(spill, ignore_errors=True)
    patients = pd.concat(pieces).drop_duplicates().sort_values("patient_id", ignore_index=True)
    return Summary(rows, patients, _named(counts, findings, splits))


def _transformed(
    parts: Sequence[Any], transform: Callable[[pd.DataFrame], pd.DataFrame], workers: int
) -> Iterator[pd.DataFrame]:
    """Blocks in their order; the next few are worked on while one is used."""

    def run(part: Any) -> pd.DataFrame:
        return transform(dask.compute(part, scheduler="synchronous")[0])

    waiting: list[Future[pd.DataFrame]] = []
    with ThreadPoolExecutor(workers) as pool:
        try:
            for part in parts:
                waiting.append(pool.submit(run, part))
                if len(waiting) >= AHEAD * workers:
                    yield waiting.pop(0).result()
            while waiting:
                yield waiting.pop(0).result()
        finally:
            pool.shutdown(cancel_futures=True)


def _write(frames: Iterable[pd.DataFrame], path: Path) -> int:
    writer, rows = None, 0
    try:
        for frame in frames:
            table = pa.Table.from_pandas(frame, preserve_index=False)
            if writer is None:
                writer = pq.ParquetWriter(path, table.schema)
            writer.write_table(table.cast(writer.schema))
            rows += table.num_rows
    finally:
        if writer is not None:
            writer.close()
    return rows


def _sorted(frames: Iterable[pd.DataFrame], order: str, spill: Path) -> Iterator[pd.DataFrame]:
    """The rows by `order`: spilled to buckets of that column's values, then bucket by bucket."""
    spill.mkdir()
    buckets: set[int] = set()
    for number, frame in enumerate(frames):
        for bucket, rows in frame.groupby(frame[order] // BUCKET_ROWS, sort=False):
            rows.to_feather(spill / f"{int(bucket)}-{number}.arrow", compression="uncompressed")
            buckets.add(int(bucket))
    for bucket in sorted(buckets):
        rows = pd.concat([pd.read_feather(file) for file in sorted(spill.glob(f"{bucket}-*.arrow"))])
        yield rows.sort_values(order, kind="stable", ignore_index=True).drop(columns=order)


def _count(frame: pd.DataFrame, findings: Sequence[str], splits: Sequence[str]) -> np.ndarray:
    labels = frame[list(findings)].to_numpy(np.float32, na_value=np.nan)
    split = frame["split"].to_numpy()
    counts = []
    for name in splits:
        here = labels[split == name]
        counts.append([len(here), *(here == 1).sum(0), *(here == 0).sum(0), *np.isnan(here).sum(0)])
    return np.array(counts, np.int64)


def _named(counts: np.ndarray, findings: Sequence[str], splits: Sequence[str]) -> dict[str, Any]:
    named = {}
    for name, row in zip(splits, counts.tolist(), strict=True):
        kinds = np.reshape(row[1:], (3, len(findings))).tolist()
        named[name] = {"films": row[0]} | {
            kind: dict(zip(findings, values, strict=True))
            for kind, values in zip(("positives", "negatives", "unknown"), kinds, strict=True)
        }
    return named
