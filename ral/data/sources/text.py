"""Reads label tables and lists as text; errors name the file, row, column and remedy."""

import codecs
import csv
import gzip
import io
import zlib
from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import IO, TYPE_CHECKING

import pandas as pd

from ral.data.images.file_names import shown
from ral.errors import UserError
from ral.suggest import nearest

if TYPE_CHECKING:
    import pyarrow as pa

# Rows per chunk, and bytes read at a time.
CHUNK_ROWS = 250_000
BLOCK = 4 << 20

# Separators that are recognized in a header.
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}

# First bytes of files that are not UTF-8 text, with the remedy.
SIGNATURES = {
    b"\xff\xfe": "is UTF-16 text, not UTF-8. Save it in UTF-8",
    b"\xfe\xff": "is UTF-16 text, not UTF-8. Save it in UTF-8",
    b"\x1f\x8b": "is compressed with gzip. Unpack it, or rename it to end in .gz",
    b"PK\x03\x04": "is a zip archive or an Excel workbook. Unpack it, or save it as CSV in UTF-8",
    b"PAR1": "is a Parquet file. Rename it to end in .parquet",
}

NOT_UTF8 = "is not UTF-8 text"

# Describes a user's own table.
WIZARD = "python -m ral.data.sources.table FILE"


def find_table(root: Path, names: Sequence[str]) -> Path:
    """Find the one file among `names` that exists in `root`.

    Raises:
        UserError: there is none, or more than one.
    """
    tables = [root / name for name in names if (root / name).is_file()]
    if not tables:
        raise UserError(f"{root} has no label table. Put {' or '.join(names)} there, or correct data.root.")
    if len(tables) > 1:
        raise UserError(f"{root} has {' and '.join(p.name for p in tables)}: keep one of them.")
    return tables[0]


def check_columns(
    path: Path,
    columns: Sequence[str],
    header: Sequence[str],
    separator: str = ",",
    keys: Mapping[str, str] | None = None,
) -> None:
    """Check that each required column is in a header exactly once.

    Args:
        keys: column -> key of params.yaml that names it, for messages; None for a publisher's table.

    Raises:
        UserError: one is missing (the message suggests the closest name or the separator) or duplicated.
    """
    missing = [name for name in columns if name not in header]
    if not missing:
        duplicates = [name for name in columns if list(header).count(name) > 1]
        if duplicates:
            raise UserError(
                f"{path} has the column `{duplicates[0]}`{_named_by(duplicates[0], keys)} more than once, and the "
                "copies may differ. Keep one of them."
            )
        return
    for sign, word in SEPARATORS.items():
        if sign != separator and len(header) == 1 and set(columns) <= set(header[0].split(sign)):
            raise UserError(
                f"{path} is separated by {word}, not by {SEPARATORS.get(separator, repr(separator))}: save it "
                "with that separator (for your own table: set data.table.separator)."
            )
    own = f" data.table names them; `{WIZARD}` reads the header and writes that section." if keys else ""
    if len(missing) == len(columns):  # do not reveal the columns of an unrelated file
        raise UserError(
            f"{path} has none of the columns needed ({', '.join(columns)}). It may be another file, or lack its header."
            + own
        )
    closest = nearest(missing[0], [name for name in header if name not in columns])
    hint = f" Did you rename it to `{closest[0]}`?" if closest else ""
    raise UserError(
        f"{path} lacks the column `{missing[0]}`{_named_by(missing[0], keys)}.{hint} Found: {_listed(header)}. "
        f"Needed: {', '.join(columns)}.{own}"
    )


def _named_by(column: str, keys: Mapping[str, str] | None) -> str:
    return f", which {keys[column]} names" if keys and column in keys else ""


def _listed(names: Sequence[str]) -> str:
    """Format names for a message, truncated if long or many."""
    cut = [shown(name if len(name) <= 60 else name[:60] + "…") for name in names[:40]]
    return ", ".join([*cut, *(["…"] if len(names) > 40 else [])])


def read_header(path: Path, separator: str = ",") -> list[str]:
    """Read the column names of a CSV table; empty for an empty file.

    Raises:
        UserError: the file is not UTF-8 text, or is damaged.
    """
    scan(path)
    with _unpacked(path) as stream:
        try:
            header = next(csv.reader(_as_lines(stream), delimiter=separator, strict=True), [])
        except csv.Error as error:
            raise UserError(
                f"{path}: the header cannot be read ({error}). A quote may be unclosed."
            ) from None
    if any("\n" in name or "\r" in name for name in header):
        raise UserError(f"{path}: a column name spans several lines. A quote in the header may be unclosed.")
    return header


def read_list(path: Path) -> list[str]:
    """Read the words of a list, one or more per line.

    Raises:
        UserError: the file is not UTF-8 text, or is damaged.
    """
    scan(path)
    with _unpacked(path) as stream:
        return _as_lines(stream).read().split()


def read_chunks(
    path: Path, columns: Sequence[str], separator: str = ",", keys: Mapping[str, str] | None = None
) -> Iterator[pd.DataFrame]:
    """Read columns of a CSV table as text ("" if empty), and `row`: the line of the file on which the row begins.

    Yields CHUNK_ROWS rows at a time, in order. Other columns are dropped, but every row must have as many fields as the
    header: an extra separator would shift labels to other columns.

    Raises:
        UserError: see `check_columns`; the table has no rows, a row has the wrong number of fields, a quote is
            unclosed, or the file is not UTF-8 text or is damaged.
    """
    plain = scan(path) and separator.isascii()
    header = read_header(path, separator)
    check_columns(path, columns, header, separator, keys)
    iter_chunks = _plain_chunks if plain else _quoted_chunks
    has_rows = False
    for chunk in iter_chunks(path, columns, header, separator):
        has_rows = True
        yield chunk
    if not has_rows:
        raise UserError(f"{path} has a header but no rows: download it again.")


def read_text(path: Path, columns: Sequence[str], separator: str = ",") -> pd.DataFrame:
    """Read all rows as `read_chunks` does."""
    return pd.concat(read_chunks(path, columns, separator), ignore_index=True)


def _plain_chunks(
    path: Path, columns: Sequence[str], header: Sequence[str], separator: str
) -> Iterator[pd.DataFrame]:
    """Chunks of a table without quotes and empty lines, where rows are lines; several times faster."""
    import pyarrow as pa
    from pyarrow import csv as arrow

    irregular: list[arrow.InvalidRow] = []

    def reject(row: "arrow.InvalidRow") -> str:
        irregular.append(row)
        return "error"

    names = list(columns)
    first, pending = 2, None
    with _unpacked(path) as stream:
        try:
            batches = arrow.open_csv(
                stream,
                # Row numbers are only known with one thread.
                read_options=arrow.ReadOptions(use_threads=False, block_size=BLOCK),
                parse_options=arrow.ParseOptions(
                    delimiter=separator, quote_char=False, invalid_row_handler=reject
                ),
                convert_options=arrow.ConvertOptions(
                    include_columns=names, column_types=dict.fromkeys(names, pa.large_string())
                ),
            )
            for batch in batches:
                table = pa.Table.from_batches([batch])
                pending = table if pending is None else pa.concat_tables([pending, table])
                while len(pending) >= CHUNK_ROWS:
                    yield _numbered(pending[:CHUNK_ROWS], first)
                    first, pending = first + CHUNK_ROWS, pending[CHUNK_ROWS:]
        except pa.ArrowInvalid as error:
            if not irregular and "infer number of columns" in str(error):
                return  # header only
            if not irregular:  # a row longer than two blocks
                raise UserError(f"{path} is not a regular CSV table: {error}. Download it again.") from None
            row = irregular[0]
            raise UserError(_irregular(path, row.number, row.actual_columns, row.expected_columns)) from None
    if pending is not None and len(pending):
        yield _numbered(pending, first)


def _numbered(table: "pa.Table", first: int) -> pd.DataFrame:
    rows: pd.DataFrame = table.to_pandas()
    return rows.assign(row=range(first, first + len(table)))


def _quoted_chunks(
    path: Path, columns: Sequence[str], header: Sequence[str], separator: str
) -> Iterator[pd.DataFrame]:
    """Chunks of any table: rows may span several lines, and empty lines are skipped."""
    width, pick = len(header), itemgetter(*(header.index(name) for name in columns))
    rows: list[tuple[str, ...]] = []
    lines: list[int] = []
    with _unpacked(path) as stream:
        reader = csv.reader(_as_lines(stream), delimiter=separator, strict=True)
        line = 1
        try:
            next(reader)
            line = reader.line_num + 1
            for fields in reader:
                if len(fields) == width:
                    rows.append(pick(fields))
                    lines.append(line)
                elif fields:
                    raise UserError(_irregular(path, line, len(fields), width))
                line = reader.line_num + 1
                if len(rows) == CHUNK_ROWS:
                    yield _frame(rows, lines, columns)
                    rows, lines = [], []
        except csv.Error as error:
            raise UserError(
                f"{path} is not a regular CSV table: {error}, in the row that begins at line {line}. A quote may be "
                "unclosed: double the quotes inside a quoted cell."
            ) from None
    if rows:
        yield _frame(rows, lines, columns)


def _frame(rows: list[tuple[str, ...]], lines: list[int], columns: Sequence[str]) -> pd.DataFrame:
    texts = zip(*rows, strict=True) if len(columns) > 1 else [rows]
    table = {name: pd.array(values, dtype="str") for name, values in zip(columns, texts, strict=True)}
    return pd.DataFrame(table).assign(row=lines)


def _irregular(path: Path, line: int, fields: int, width: int) -> str:
    if fields > width:
        return (
            f"{path}, row {line}: it has more fields than the header ({fields} instead of {width}), so values are in "
            "the wrong columns. Quote cells that contain the separator, such as a decimal comma."
        )
    return (
        f"{path}, row {line}: it is truncated ({fields} fields instead of {width}). "
        "Download the table again, or complete that row."
    )


def scan(path: Path) -> bool:
    """Read a file once and check that it is complete UTF-8 text; it is unpacked if its name ends in .gz.

    Returns:
        Whether it is plain: without quotes and empty lines, so that each line is a row.

    Raises:
        UserError: it is not; the message names the line or the format.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    plain, end, problem = True, b"\n", ""
    try:
        with _unpacked(path) as stream:
            block = stream.read(BLOCK)
            for signature, words in SIGNATURES.items():
                problem = words if block.startswith(signature) else problem
            # Always read to the end: damaged data may unpack to garbage before the checksum fails.
            while block:
                problem = problem or _problem(block, decoder)
                joined = end + block
                plain &= not any(sign in joined for sign in (b'"', b"\n\n", b"\n\r", b"\r\r"))
                end, block = block[-1:], stream.read(BLOCK)
            problem = problem or _problem(b"", decoder)
        if problem == NOT_UTF8:
            problem += f": {_bad_byte(path)}. Save it in UTF-8"
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path} is truncated or damaged ({error}). Download it again.") from None
    if problem:
        raise UserError(f"{path} {problem}.")
    return plain


def _problem(block: bytes, decoder: codecs.IncrementalDecoder) -> str:
    """Problem with the next bytes of a file (none at its end), or ""."""
    if b"\0" in block:
        return "contains zero bytes: it is UTF-16 or binary. Save it in UTF-8"
    try:
        decoder.decode(block, final=not block)
    except UnicodeDecodeError:
        return NOT_UTF8
    return ""


def _as_lines(stream: IO[bytes]) -> IO[str]:
    return io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")


def _unpacked(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def _bad_byte(path: Path) -> str:
    """Describe where a file stops being UTF-8."""
    with _unpacked(path) as stream:
        for number, line in enumerate(stream, start=1):
            try:
                line.decode("utf-8-sig")
            except UnicodeDecodeError as error:
                return f"line {number} contains the byte 0x{line[error.start]:02x}"
    return "the last character is incomplete"
