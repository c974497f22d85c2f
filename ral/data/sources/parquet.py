"""Parquet tables read as the text that a CSV of them would hold: a file, or a folder of parts as Spark and Dask write it."""

from collections.abc import Iterator, Sequence
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

# From here on whole numbers are not all different as 64-bit floats.
EXACT_FLOAT = 2**53

# How Hive, and Spark after it, write a null in the name of a folder.
NULL = "__HIVE_DEFAULT_PARTITION__"


def is_parquet(path: Path) -> bool:
    """Whether a table is Parquet: by its ending, or because it is a folder of parts."""
    return path.is_dir() or path.suffix.lower() in ENDINGS


def parquet_files(path: Path) -> list[Path]:
    """The files of a table: itself, or the parts of a folder by their names; names that begin with . or _ do not count.

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


def read_parquet_pieces(path: Path, columns: Sequence[str]) -> Iterator[pd.DataFrame]:
    """The columns of a table as text, and `row`: the number of the row, from 1, all parts counted in their order.

    Each part is read by its own types, so that no part's values are changed to fit another's. A column may also be the
    name of a folder, `column=value`, as Hive writes it. Yields `text.PIECE` rows at a time.

    Raises:
        UserError: a part lacks a column or has it twice, is damaged or no Parquet; a column is no text, number, truth value
            or date; there are no rows.
    """
    first, waiting = 1, pd.DataFrame()
    for file in parquet_files(path):
        for piece in _read_part(file, path, list(dict.fromkeys(columns))):
            waiting = pd.concat([waiting, piece], ignore_index=True) if len(waiting) else piece
            while len(waiting) >= text.PIECE:
                yield _numbered(waiting[: text.PIECE], first)
                first, waiting = first + text.PIECE, waiting[text.PIECE :].reset_index(drop=True)
    if len(waiting):
        yield _numbered(waiting, first)
    elif first == 1:
        raise UserError(f"{path} has no rows.")


def _numbered(piece: pd.DataFrame, first: int) -> pd.DataFrame:
    return piece.assign(row=range(first, first + len(piece)))


def _read_part(file: Path, table: Path, columns: list[str]) -> Iterator[pd.DataFrame]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folders = [part.split("=", 1) for part in file.relative_to(table).parts[:-1] if "=" in part]
    fixed = {unquote(name): "" if value == NULL else unquote(value) for name, value in folders}
    try:
        with pq.ParquetFile(file) as part:
            names = part.schema_arrow.names
            stored = [name for name in columns if name not in fixed]
            check_columns(file, stored, names)
            for batch in part.iter_batches(text.PIECE, columns=stored):
                piece = {name: _as_text(batch.column(name), file, name) for name in stored}
                piece |= {name: pd.Series(fixed[name], range(len(batch)), dtype="str") for name in fixed}
                yield pd.DataFrame({name: piece[name] for name in columns})
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        raise UserError(f"{file} is no Parquet file, or damaged ({error}).") from None


def _as_text(values: "pa.Array", file: Path, name: str) -> pd.Series:
    """A column as text: whole numbers without a point, True and False, "" for what is missing."""
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
            f"{file}: the column `{name}` is of type {kind}; text, numbers, truth values and dates can be read."
        )
    if pa.types.is_boolean(kind):
        values = pc.if_else(values, "True", "False")
    try:
        values.validate(full=True)
        return pd.Series(pd.array(values.cast(pa.large_string()).fill_null(""), dtype="str"))
    except pa.ArrowException as error:
        raise UserError(f"{file}: the column `{name}` cannot be read as text ({error}).") from None


def _floats(values: np.ndarray, file: Path, name: str) -> pd.Series:
    """Floating point as text; each distinct number is written once."""
    codes, numbers = pd.factorize(values)
    if any(abs(number) >= EXACT_FLOAT and abs(number) != float("inf") for number in numbers):
        raise UserError(
            f"{file}: the column `{name}` holds whole numbers of 16 digits or more as floating point, which has lost "
            "digits. Write it as text or as 64-bit integers."
        )
    written = [f"{number:.0f}" if number % 1 == 0 else str(number) for number in numbers.tolist()]
    return pd.Series(
        pd.array(["0" if word == "-0" else word for word in written] + [""], dtype="str").take(codes)
    )
