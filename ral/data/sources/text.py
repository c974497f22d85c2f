"""Label tables and lists read as text, with errors that name the file, the row, the column and what to do."""

import codecs
import csv
import gzip
import io
import zlib
from collections.abc import Iterator, Sequence
from operator import itemgetter
from pathlib import Path
from typing import IO, TYPE_CHECKING

import pandas as pd

from ral.data.images.file_names import shown
from ral.errors import UserError
from ral.labels import nearest

if TYPE_CHECKING:
    import pyarrow as pa

# Rows of a piece, and bytes read at a time.
PIECE = 250_000
BLOCK = 4 << 20

# Characters that are taken for another separator than the one expected.
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}

# First bytes of files that are no text, and what to do with such a file.
SIGNATURES = {
    b"\xff\xfe": "is UTF-16 text, not UTF-8. Save it in UTF-8",
    b"\xfe\xff": "is UTF-16 text, not UTF-8. Save it in UTF-8",
    b"\x1f\x8b": "is compressed with gzip. Unpack it, or give its name the ending .gz",
    b"PK\x03\x04": "is a zip archive or an Excel workbook. Unpack it, or save it as CSV in UTF-8",
    b"PAR1": "is a Parquet file. Give its name the ending .parquet",
}

NOT_UTF8 = "is not UTF-8 text"


def find_table(root: Path, names: Sequence[str]) -> Path:
    """The one of the files `names` that is in `root`.

    Raises:
        UserError: there is none, or more than one.
    """
    there = [root / name for name in names if (root / name).is_file()]
    if not there:
        raise UserError(f"{root} has no label table. Put {' or '.join(names)} there, or correct data.root.")
    if len(there) > 1:
        raise UserError(f"{root} has {' and '.join(p.name for p in there)}: keep one of them.")
    return there[0]


def check_columns(path: Path, columns: Sequence[str], header: Sequence[str], separator: str = ",") -> None:
    """Check that each of the columns used is in a header, once.

    Raises:
        UserError: one is absent (the nearest name is given, or the other separator that the header shows) or is there
            twice.
    """
    missing = [name for name in columns if name not in header]
    if not missing:
        twice = [name for name in columns if list(header).count(name) > 1]
        if twice:
            raise UserError(
                f"{path} has the column `{twice[0]}` more than once, and they may differ. Keep one of them."
            )
        return
    for sign, word in SEPARATORS.items():
        if sign != separator and len(header) == 1 and set(columns) <= set(header[0].split(sign)):
            raise UserError(
                f"{path} is separated by {word}, not by {SEPARATORS.get(separator, repr(separator))}: save it "
                "with that separator (for your own table: set data.table.separator)."
            )
    if len(missing) == len(columns):  # what such a file holds is nobody's business
        raise UserError(
            f"{path} has none of the columns needed ({', '.join(columns)}). It may be another file, or lack its header."
        )
    near = nearest(missing[0], [name for name in header if name not in columns])
    hint = f" Did you rename it to `{near}`?" if near else ""
    raise UserError(
        f"{path} lacks the column `{missing[0]}`.{hint} Found: {_listed(header)}. Needed: {', '.join(columns)}."
    )


def _listed(names: Sequence[str]) -> str:
    """Names for a message, cut where they are long or many."""
    cut = [shown(name if len(name) <= 60 else name[:60] + "…") for name in names[:40]]
    return ", ".join([*cut, *(["…"] if len(names) > 40 else [])])


def read_header(path: Path, separator: str = ",") -> list[str]:
    """The column names of a CSV table; none where the file is empty.

    Raises:
        UserError: the file is no UTF-8 text, or damaged.
    """
    scan(path)
    with _unpacked(path) as stream:
        try:
            header = next(csv.reader(_as_lines(stream), delimiter=separator, strict=True), [])
        except csv.Error as error:
            raise UserError(
                f"{path}: the header cannot be read ({error}). A quote may be open there."
            ) from None
    if any("\n" in name or "\r" in name for name in header):
        raise UserError(
            f"{path}: a column's name goes over several lines. A quote may be open in the header."
        )
    return header


def read_list(path: Path) -> list[str]:
    """The words of a list, one or more on a line.

    Raises:
        UserError: the file is no UTF-8 text, or damaged.
    """
    scan(path)
    with _unpacked(path) as stream:
        return _as_lines(stream).read().split()


def read_pieces(path: Path, columns: Sequence[str], separator: str = ",") -> Iterator[pd.DataFrame]:
    """The columns of a CSV table as text, "" where empty, and `row`: the line of the file on which the row begins.

    Yields PIECE rows at a time, in order. Columns that are not asked for are not kept, but every row must have a field
    for each column of the header: a separator too many would move the labels of a row.

    Raises:
        UserError: see `check_columns`; the table has no rows, a row has another number of fields than the header, a
            quote is open, or the file is no UTF-8 text or damaged.
    """
    plain = scan(path) and separator.isascii()
    header = read_header(path, separator)
    check_columns(path, columns, header, separator)
    iter_chunks = _plain_chunks if plain else _quoted_chunks
    any_rows = False
    for piece in iter_chunks(path, columns, header, separator):
        any_rows = True
        yield piece
    if not any_rows:
        raise UserError(f"{path} has a header but no rows: download it again.")


def read_text(path: Path, columns: Sequence[str], separator: str = ",") -> pd.DataFrame:
    """All rows of `read_pieces`."""
    return pd.concat(read_pieces(path, columns, separator), ignore_index=True)


def _plain_chunks(
    path: Path, columns: Sequence[str], header: Sequence[str], separator: str
) -> Iterator[pd.DataFrame]:
    """The pieces of a table without quotes and empty lines, in which rows are lines; several times as fast."""
    import pyarrow as pa
    from pyarrow import csv as arrow

    irregular: list[arrow.InvalidRow] = []

    def refuse(row: "arrow.InvalidRow") -> str:
        irregular.append(row)
        return "error"

    names = list(columns)
    first, waiting = 2, None
    with _unpacked(path) as stream:
        try:
            batches = arrow.open_csv(
                stream,
                # One thread: it knows the number of each row.
                read_options=arrow.ReadOptions(use_threads=False, block_size=BLOCK),
                parse_options=arrow.ParseOptions(
                    delimiter=separator, quote_char=False, invalid_row_handler=refuse
                ),
                convert_options=arrow.ConvertOptions(
                    include_columns=names, column_types=dict.fromkeys(names, pa.large_string())
                ),
            )
            for batch in batches:
                table = pa.Table.from_batches([batch])
                waiting = table if waiting is None else pa.concat_tables([waiting, table])
                while len(waiting) >= PIECE:
                    yield _numbered(waiting[:PIECE], first)
                    first, waiting = first + PIECE, waiting[PIECE:]
        except pa.ArrowInvalid as error:
            if not irregular and "infer number of columns" in str(error):
                return  # the header is all there is
            if not irregular:  # a row longer than two blocks
                raise UserError(f"{path} is not a regular CSV table: {error}. Get it again.") from None
            row = irregular[0]
            raise UserError(_irregular(path, row.number, row.actual_columns, row.expected_columns)) from None
    if waiting is not None and len(waiting):
        yield _numbered(waiting, first)


def _numbered(table: "pa.Table", first: int) -> pd.DataFrame:
    return table.to_pandas().assign(row=range(first, first + len(table)))


def _quoted_chunks(
    path: Path, columns: Sequence[str], header: Sequence[str], separator: str
) -> Iterator[pd.DataFrame]:
    """The pieces of any table: a row may go over several lines, and an empty line is none."""
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
                if len(rows) == PIECE:
                    yield _frame(rows, lines, columns)
                    rows, lines = [], []
        except csv.Error as error:
            raise UserError(
                f"{path} is not a regular CSV table: {error}, in the row that begins at line {line}. A quote may be open "
                "there: a quote inside a quoted cell is written twice."
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
            f"{path}, row {line}: it has more fields than the header ({fields} instead of {width}), so that values stand "
            "under wrong columns. A separator inside a cell, such as a decimal comma, needs quotes around the cell."
        )
    return (
        f"{path}, row {line}: it is cut short ({fields} fields instead of {width}). "
        "Get the table again from its owner, or complete that row."
    )


def scan(path: Path) -> bool:
    """Read a file once and check that it is UTF-8 text and whole; it is unpacked if its name ends in .gz.

    Returns:
        Whether it is plain: without quotes and empty lines, so that each line is a row.

    Raises:
        UserError: it is not; the line, or what kind of file it is, is named.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    plain, end, problem = True, b"\n", ""
    try:
        with _unpacked(path) as stream:
            block = stream.read(BLOCK)
            for signature, words in SIGNATURES.items():
                problem = words if block.startswith(signature) else problem
            # To the end, whatever is found: damaged data may unpack to nonsense before its checksum tells.
            while block:
                problem = problem or _problem(block, decoder)
                joined = end + block
                plain &= not any(sign in joined for sign in (b'"', b"\n\n", b"\n\r", b"\r\r"))
                end, block = block[-1:], stream.read(BLOCK)
            problem = problem or _problem(b"", decoder)
        if problem == NOT_UTF8:
            problem += f": {_bad_byte(path)}. Save it in UTF-8"
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path} is truncated or damaged ({error}). Get it again from its owner.") from None
    if problem:
        raise UserError(f"{path} {problem}.")
    return plain


def _problem(block: bytes, decoder: codecs.IncrementalDecoder) -> str:
    """What is no UTF-8 text in the next bytes of a file (at its end none), or ""."""
    if b"\0" in block:
        return "holds zero bytes: it is UTF-16 or no text. Save it in UTF-8"
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
    """Where a file stops being UTF-8, for people."""
    with _unpacked(path) as stream:
        for number, line in enumerate(stream, start=1):
            try:
                line.decode("utf-8-sig")
            except UnicodeDecodeError as error:
                return f"line {number} holds the byte 0x{line[error.start]:02x}"
    return "its end is cut off"
