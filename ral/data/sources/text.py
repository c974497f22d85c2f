"""Label tables read as text, with errors that name the file, the column and what to do."""

import csv
import gzip
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ral.errors import UserError
from ral.labels import nearest

# Rows read at a time.
PIECE = 250_000

# Signs that are taken for another separator than the one expected.
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}


def find_table(root: Path, names: Sequence[str]) -> Path:
    """The one of the files `names` that is in `root`.

    Raises:
        UserError: there is none, or more than one.
    """
    found = [root / name for name in names if (root / name).is_file()]
    if not found:
        raise UserError(f"{root} has no label table. Put {' or '.join(names)} there, or correct data.root.")
    if len(found) > 1:
        raise UserError(f"{root} has {' and '.join(p.name for p in found)}: keep one of them.")
    return found[0]


def check_header(path: Path, columns: Sequence[str], separator: str = ",") -> None:
    """Check that a CSV table has the columns used and at least one row; others are never read.

    Raises:
        UserError: a column is absent, or the table is empty or not text.
    """
    opening = gzip.open if path.suffix == ".gz" else open
    try:
        with opening(path, "rt", encoding="utf-8-sig", newline="") as stream:
            rows = csv.reader(stream, delimiter=separator)
            header = next(rows, [])
            first = next(rows, None)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error}). Save it as CSV in UTF-8.") from None
    except (gzip.BadGzipFile, EOFError, csv.Error) as error:
        raise UserError(f"{path} cannot be read ({error}). Get it again from its owner.") from None
    check_columns(path, columns, header, separator)
    if first is None:
        raise UserError(f"{path} has a header but no rows: download it again.")


def check_columns(path: Path, columns: Sequence[str], header: Sequence[str], separator: str = ",") -> None:
    """Check that the columns used are in a header.

    Raises:
        UserError: one is absent; the nearest name is given, or the other separator that the header shows.
    """
    missing = [name for name in columns if name not in header]
    if not missing:
        return
    for sign, word in SEPARATORS.items():
        if sign != separator and len(header) == 1 and set(columns) <= set(header[0].split(sign)):
            raise UserError(
                f"{path} is separated by {word}, not by {SEPARATORS.get(separator, repr(separator))}: save it "
                "with that separator (for your own table: set data.table.separator)."
            )
    near = nearest(missing[0], [name for name in header if name not in columns])
    hint = f" Did you rename it to `{near}`?" if near else ""
    raise UserError(
        f"{path} lacks the column `{missing[0]}`.{hint} Found: {', '.join(header) or 'nothing'}. "
        f"Needed: {', '.join(columns)}."
    )


def read_options(columns: Sequence[str], separator: str = ",") -> dict[str, Any]:
    """Arguments under which pandas reads a label table as text, only the columns used."""
    return {
        "usecols": list(columns),
        "dtype": str,
        "keep_default_na": False,
        "index_col": False,
        "encoding": "utf-8-sig",
        "sep": separator,
    }


def read_pieces(path: Path, columns: Sequence[str], separator: str = ",") -> Iterator[pd.DataFrame]:
    """The columns of a CSV table as text, "" where empty, and `row`: the line of the file (the header is line 1).

    Yields PIECE rows at a time, in order.

    Raises:
        UserError: see `check_header`; or a row has another number of fields.
    """
    check_header(path, columns, separator)
    first = 2
    try:
        with pd.read_csv(path, chunksize=PIECE, **read_options(columns, separator)) as pieces:
            for piece in pieces:
                yield piece.assign(row=range(first, first + len(piece)))
                first += len(piece)
    except pd.errors.ParserError as error:
        raise UserError(f"{path} is not a regular CSV table: {error}. Mend that row.") from None
    except (EOFError, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is truncated ({error}). Get it again from its owner.") from None


def read_text(path: Path, columns: Sequence[str], separator: str = ",") -> pd.DataFrame:
    """All rows of `read_pieces`."""
    return pd.concat(read_pieces(path, columns, separator), ignore_index=True)
