"""Writes the results of a prediction: CSV, Parquet or JSON lines; an interrupted run can be resumed.

Rows go to `OUT.partial`, which becomes OUT when all images are written. Parquet cannot be appended to, so its rows are
kept as CSV until then. Only whole lines count: a line that a killed process was writing is written again.
"""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from ral.data.images.file_names import shown
from ral.errors import UserError
from ral.files import atomic_write
from ral.inference.images import InputImage
from ral.inference.scoring import Labels, Predicted

ENDINGS = (".csv", ".parquet", ".jsonl")

# Rows are written when so many have been collected, or after so many seconds.
FLUSH_ROWS, FLUSH_SECONDS = 256, 2.0
# Bytes read at a time to find the last whole line.
BLOCK = 1 << 16


def schema(findings: Sequence[str]) -> pa.Schema:
    """Columns of the results: per finding probability, decision and raw logit; empty without a result."""
    fields = [(name, pa.string()) for name in ("image", "error", "warning", "view")]
    for name in findings:
        fields += [
            (f"{name}_probability", pa.float64()), (f"{name}_decision", pa.bool_()), (f"{name}_logit", pa.float32()),
        ]  # fmt: skip
    return pa.schema([*fields, ("model", pa.string()), ("notice", pa.string())])


def to_table(parts: Sequence[Predicted], labels: Labels) -> pa.Table:
    """Results of one or more passes as a table of `schema`."""
    probabilities = np.concatenate([part.probabilities for part in parts])
    logits = np.concatenate([part.logits for part in parts])
    decisions = probabilities >= labels.thresholds  # of NaN: masked below
    missing, without_logit = np.isnan(probabilities), np.isnan(logits)

    def text(name: str) -> pa.Array:
        return pa.array(
            [shown(value) or None for part in parts for value in getattr(part, name)], pa.string()
        )

    columns = [text(name) for name in ("names", "errors", "warnings", "views")]
    for index in range(len(labels.findings)):
        columns += [
            pa.array(probabilities[:, index], pa.float64(), mask=missing[:, index]),
            pa.array(decisions[:, index], pa.bool_(), mask=missing[:, index]),
            pa.array(logits[:, index], pa.float32(), mask=without_logit[:, index]),
        ]
    columns += [pa.array([value] * len(logits), pa.string()) for value in (labels.model, labels.notice)]
    return pa.Table.from_arrays(columns, schema=schema(labels.findings))


def to_frame(table: pa.Table) -> pd.DataFrame:
    """The same as a data frame: decisions are nullable booleans, missing texts are ""."""
    frame: pd.DataFrame = table.to_pandas(types_mapper={pa.bool_(): pd.BooleanDtype()}.get)
    texts = ["error", "warning", "view"]
    frame[texts] = frame[texts].fillna("")
    return frame


class ResultFile:
    """The file that results are written to; a context manager. `finish` completes it.

    Args:
        path: file to write; its ending gives the format.
        labels: of the predictor.
        resume: whether to continue what an interrupted run wrote.

    Attributes:
        complete: whether an earlier run completed the file; there is nothing to do then.
        images: rows in the file.
        bad: rows without a result.

    Raises:
        UserError: an unknown ending; results of an interrupted run without `resume`; results of another model.
    """

    def __init__(self, path: Path, labels: Labels, resume: bool) -> None:
        if path.suffix.lower() not in ENDINGS:
            raise UserError(
                f"{path}: the results are written as {', '.join(ENDINGS)}. Choose one of these endings."
            )
        self.path, self.partial = path, path.with_name(path.name + ".partial")
        self._labels = labels
        self._json = path.suffix.lower() == ".jsonl"
        self._schema = schema(labels.findings)
        self._done: Counter[bytes] = Counter()
        self.images = self.bad = 0
        self.complete = False
        if self.partial.exists() and not resume:
            raise UserError(
                f"{self.partial} has the results of an interrupted run. Add --resume to continue it, or delete it."
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        if self.partial.exists():
            self._read_partial()
        elif resume and path.exists():
            self._check(_complete_rows(path, self._schema))
            self.complete = True
        self._file: IO[bytes] = self.partial.open("ab") if not self.complete else path.open("rb")
        if not self.complete and not self._json and self._file.tell() == 0:
            self._file.write(_csv(self._schema.empty_table(), header=True))
            self._file.flush()
        self._waiting: list[Predicted] = []
        self._flushed = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._file.closed:
            if not self.complete:
                self._flush()  # of an interrupted run, too
            self._file.close()
            if not self.complete and not self.images:
                self.partial.unlink()  # there is nothing to resume

    def remaining(self, images: Iterator[InputImage]) -> Iterator[InputImage]:
        """Those of the images that are not yet in the file."""
        if not self._done:
            yield from images
            return
        for image in images:
            key = _key(image.name)
            if self._done[key] > 0:
                self._done[key] -= 1  # an archive can have two members of one name
            else:
                yield image

    def write(self, predicted: Predicted) -> None:
        """Add results."""
        self._waiting.append(predicted)
        self.images += len(predicted.names)
        self.bad += sum(map(bool, predicted.errors))
        waiting = sum(len(part.names) for part in self._waiting)
        if waiting >= FLUSH_ROWS or time.monotonic() - self._flushed > FLUSH_SECONDS:
            self._flush()

    def finish(self) -> None:
        """Complete the file: rename what was written, or convert it to Parquet."""
        self._flush()
        self._file.close()
        if self.path.suffix.lower() == ".parquet":
            with atomic_write(self.path) as draft, pa.parquet.ParquetWriter(draft, self._schema) as writer:
                for table in _read_csv(self.partial, self._schema):
                    writer.write_table(table)
            self.partial.unlink()
        else:
            self.partial.replace(self.path)

    def _flush(self) -> None:
        if self._waiting:
            table = to_table(self._waiting, self._labels)
            self._file.write(_json_lines(table) if self._json else _csv(table))
            self._file.flush()
        self._waiting, self._flushed = [], time.monotonic()

    def _read_partial(self) -> None:
        _cut_last_line(self.partial)
        if self._json:
            self._check(_json_rows(self.partial))
        elif self.partial.stat().st_size:
            expected = _csv(self._schema.empty_table(), header=True)
            with self.partial.open("rb") as stream:
                if stream.readline() != expected:
                    raise UserError(
                        f"{self.partial} has other columns than this run: it is of another model. Choose another "
                        "output, or delete it."
                    )
            self._check(_csv_rows(self.partial, self._schema))

    def _check(self, rows: Iterator[tuple[str, str | None, str]]) -> None:
        """Count the rows (image, error, model) of an earlier run, which must be of this model."""
        for name, error, model in rows:
            if model != self._labels.model:
                raise UserError(
                    f"{self.path} has results of {model}, but this run uses {self._labels.model}. Choose another "
                    "output."
                )
            self._done[_key(name)] += 1
            self.images += 1
            self.bad += bool(error)


def _key(name: str) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=12).digest()


def _csv(table: pa.Table, header: bool = False) -> bytes:
    sink = pa.BufferOutputStream()
    pa.csv.write_csv(table, sink, pa.csv.WriteOptions(include_header=header, quoting_style="needed"))
    written: bytes = sink.getvalue().to_pybytes()
    return written


def _json_lines(table: pa.Table) -> bytes:
    rows = table.to_pylist()
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _read_csv(path: Path, columns: pa.Schema) -> Iterator[pa.Table]:
    """Tables of a CSV file that this module wrote, in constant memory."""
    types = {field.name: field.type for field in columns}
    convert = pa.csv.ConvertOptions(column_types=types, null_values=[""], strings_can_be_null=True)
    with pa.csv.open_csv(path, convert_options=convert) as reader:
        for batch in reader:
            yield pa.Table.from_batches([batch])


def _csv_rows(path: Path, columns: pa.Schema) -> Iterator[tuple[str, str | None, str]]:
    for table in _read_csv(path, columns):
        yield from _rows(table)


def _rows(table: pa.Table) -> Iterator[tuple[str, str | None, str]]:
    columns: list[list[Any]] = [table[name].to_pylist() for name in ("image", "error", "model")]
    yield from zip(*columns, strict=True)


def _json_rows(path: Path) -> Iterator[tuple[str, str | None, str]]:
    with path.open(encoding="utf-8") as stream:
        for line in stream:
            try:
                row = json.loads(line)
                yield row["image"], row["error"], row["model"]
            except (ValueError, KeyError, TypeError):
                raise UserError(
                    f"{path} is not a file of results. Choose another output, or delete it."
                ) from None


def _complete_rows(path: Path, columns: pa.Schema) -> Iterator[tuple[str, str | None, str]]:
    if path.suffix.lower() == ".jsonl":
        return _json_rows(path)
    if path.suffix.lower() == ".csv":
        return _csv_rows(path, columns)
    batches = pa.parquet.ParquetFile(path).iter_batches(columns=["image", "error", "model"])
    return (row for batch in batches for row in _rows(pa.Table.from_batches([batch])))


def _cut_last_line(path: Path) -> None:
    """Remove an incomplete last line, which a killed process left."""
    with path.open("r+b") as stream:
        end = stream.seek(0, 2)
        while end:
            start = max(0, end - BLOCK)
            stream.seek(start)
            newline = stream.read(end - start).rfind(b"\n")
            if newline >= 0:
                stream.truncate(start + newline + 1)
                return
            end = start
        stream.truncate(0)
