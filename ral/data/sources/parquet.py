"""Reads Parquet tables as the text of an equivalent CSV file: a file, or a folder of parts written by Spark or Dask."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

import numpy as np
import pandas as pd

from ral.data.sources import text
from ral.data.sources.text import check_columns
from ral.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

ENDINGS = (".parquet", ".pq")

# From here on, 64-bit floats cannot represent all integers.
EXACT_FLOAT = 2**53

# Null in a folder name, as written by Hive and Spark.
NULL = "__HIVE_DEFAULT_PARTITION__"


def is_parquet(path: Path) -> bool:
    """Whether a table is Parquet, by its extension, or because it is a folder of parts."""
    return path.is_dir() or path.suffix.lower() in ENDINGS


def parquet_files(path: Path) -> list[Path]:
    """Files of a table: itself, or the parts in a folder sorted by name; names that begin with . or _ are ignored.

    Raises:
        UserError: the folder has none.
    """
    if not path.is_dir():
        return [path]
    files = [
        file
        for file in sorted(path.rglob("*"))
        if file.suffix.lower() in ENDINGS
        and file.is_file()
        and not any(part.startswith((".", "_")) for part in file.relative_to(path).parts)
    ]
    if not files:
        raise UserError(f"{path} is a folder without a .parquet file. Put the parts of the table there.")
    return files


def read_parquet_chunks(
    path: Path, columns: Sequence[str], keys: Mapping[str, str] | None = None
) -> Iterator[pd.DataFrame]:
    """Read columns of a table as text, and `row`: the number of the row, from 1, over all parts in order.

    Each part is read with its own types, without conversion between parts. A column may also be a Hive
    partition, a folder named `column=value`. Yields `text.CHUNK_ROWS` rows at a time. `keys` as in
    `text.check_columns`.

    Raises:
        UserError: a part lacks a column or has it twice, is damaged or is not Parquet; a column is not of
            text, numbers, booleans or dates; there are no rows.
    """
    first, pending = 1, pd.DataFrame()
    for file in parquet_files(path):
        for chunk in _read_part(file, path, list(dict.fromkeys(columns)), keys):
            pending = pd.concat([pending, chunk], ignore_index=True) if len(pending) else chunk
            while len(pending) >= text.CHUNK_ROWS:
                yield _numbered(pending[: text.CHUNK_ROWS], first)
                first, pending = first + text.CHUNK_ROWS, pending[text.CHUNK_ROWS :].reset_index(drop=True)
    if len(pending):
        yield _numbered(pending, first)
    elif first == 1:
        raise UserError(f"{path} has no rows.")


def _numbered(chunk: pd.DataFrame, first: int) -> pd.DataFrame:
    return chunk.assign(row=range(first, first + len(chunk)))


def _read_part(
    file: Path, table: Path, columns: list[str], keys: Mapping[str, str] | None
) -> Iterator[pd.DataFrame]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folders = [part.split("=", 1) for part in file.relative_to(table).parts[:-1] if "=" in part]
    partition_values = {unquote(name): "" if value == NULL else unquote(value) for name, value in folders}
    try:
        with pq.ParquetFile(file) as part:
            names = part.schema_arrow.names
            stored = [name for name in columns if name not in partition_values]
            check_columns(file, stored, names, keys=keys)
            for batch in part.iter_batches(text.CHUNK_ROWS, columns=stored):
                values = {name: _as_text(batch.column(name), file, name) for name in stored}
                values |= {
                    name: pd.Series(value, range(len(batch)), dtype="str")
                    for name, value in partition_values.items()
                }
                yield pd.DataFrame({name: values[name] for name in columns})
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        raise UserError(f"{file} is not a Parquet file, or is damaged ({error}).") from None


def _as_text(values: "pa.Array", file: Path, name: str) -> pd.Series:
    """Convert a column to text: integers without a point, True and False, "" for null."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = values.type
    if pa.types.is_dictionary(kind):
        values, kind = values.dictionary_decode(), kind.value_type
    if pa.types.is_floating(kind):
        return _floats(values.cast(pa.float64()).to_numpy(zero_copy_only=False), file, name)
    readable = (
        pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_boolean, pa.types.is_integer,
        pa.types.is_decimal, pa.types.is_temporal, pa.types.is_null,
    )  # fmt: skip
    if not any(test(kind) for test in readable):
        raise UserError(
            f"{file}: the column `{name}` is of type {kind}; supported are text, numbers, booleans and dates."
        )
    if pa.types.is_boolean(kind):
        values = pc.if_else(values, "True", "False")
    try:
        values.validate(full=True)
        return pd.Series(pd.array(values.cast(pa.large_string()).fill_null(""), dtype="str"))
    except pa.ArrowException as error:
        raise UserError(f"{file}: the column `{name}` cannot be read as text ({error}).") from None


def _floats(values: np.ndarray, file: Path, name: str) -> pd.Series:
    """Convert floats to text; each distinct number is formatted once."""
    codes, numbers = pd.factorize(values)
    if any(abs(number) >= EXACT_FLOAT and abs(number) != float("inf") for number in numbers):
        raise UserError(
            f"{file}: the column `{name}` contains integers of 16 digits or more as floating point, which "
            "loses digits. Write it as text or as 64-bit integers."
        )
    texts = [f"{number:.0f}" if number % 1 == 0 else str(number) for number in numbers.tolist()]
    return pd.Series(
        pd.array(["0" if number == "-0" else number for number in texts] + [""], dtype="str").take(codes)
    )
