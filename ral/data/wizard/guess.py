"""Guesses what the columns and words of a user's own table mean; what is not certain becomes a question."""

import os
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from ral.config.data import UNANSWERED
from ral.data.images.file_names import is_image
from ral.data.images.locate import find_sources
from ral.data.sources.base import LABEL_VALUES
from ral.data.sources.base import VIEWS as PIPELINE_VIEWS
from ral.data.sources.parquet import is_parquet, parquet_files, read_parquet_chunks
from ral.data.sources.text import SEPARATORS, read_chunks, read_header
from ral.data.wizard.description import Column, Description
from ral.data.wizard.labels import list_column, mark_columns
from ral.data.wizard.words import HEADERS, NO_SEX, SEXES, VIEWS, folded
from ral.errors import UserError
from ral.labels import ADDED_COLUMNS

# Files that are looked for before a column counts as one of paths, and files that a search opens at most.
SAMPLE, SEARCHED = 1000, 100_000

DATE = re.compile(
    r"(19|20)\d\d-?(0[1-9]|1[0-2])-?(0[1-9]|[12]\d|3[01])([ T].*)?|\d{1,2}[./]\d{1,2}[./](\d\d){1,2}( .*)?"
)


def describe(table: Path) -> Description:
    """Read a table and guess its description.

    Raises:
        UserError: the file is missing, is not UTF-8 text or Parquet, or is not a regular table.
    """
    if not table.exists():
        raise UserError(f"{table} does not exist. Give the path of your CSV or Parquet table.")
    description = Description(table.parent)
    columns = _read(table, description)
    guess = _Guess(columns, description)
    guess.images(table)
    guess.pick("patient_id", _complete)
    if not description.values.get("patient_id"):
        guess.require_patient()
    guess.pick("study_id", _complete)
    guess.pick("follow_up", _whole)
    guess.words("sex", "sexes", _sex_words)
    guess.words("view", "views", _view_words)
    guess.pick("age_years", _age)
    guess.pick("split", _among({"train", "val", "test", ""}))
    guess.pick("photometric", _among({"MONOCHROME1", "MONOCHROME2", ""}))
    guess.dates()
    guess.labels()
    guess.unused()
    return description


def _read(table: Path, description: Description) -> list[Column]:
    """The columns that have a name of their own, with all their cells."""
    if is_parquet(table):
        import pyarrow.parquet as pq

        header = pq.ParquetFile(parquet_files(table)[0]).schema_arrow.names
    else:
        separator, header = _separator(table, description)
        description.values["separator"] = separator
    names = [name for name in header if name and header.count(name) == 1 and name not in ADDED_COLUMNS]
    for name in dict.fromkeys(name for name in header if name and header.count(name) > 1):
        description.ask(
            "file", f"The column `{name}` occurs twice, so it cannot be used: rename one of them."
        )
    for name in header:
        if name in ADDED_COLUMNS:
            description.note("file", f"The column `{name}` is not read: the pipeline adds one of that name.")
    if not names:
        raise UserError(f"{table} has no column names in its first line. Write a header.")
    chunks = read_parquet_chunks(table, names) if is_parquet(table) else read_chunks(table, names, separator)
    cells: dict[str, Counter[str]] = {name: Counter() for name in names}
    for chunk in chunks:
        description.rows += len(chunk)
        for name in names:
            cells[name].update(chunk[name].value_counts().to_dict())
    return [Column(name, counter) for name, counter in cells.items()]


def _separator(table: Path, description: Description) -> tuple[str, list[str]]:
    """The separator that gives the most columns, and the header."""
    headers = {sign: read_header(table, sign) for sign in SEPARATORS}
    sign = max(headers, key=lambda sign: len(headers[sign]))
    others = [name for other, name in SEPARATORS.items() if other != sign and len(headers[other]) > 1]
    if len(headers[sign]) == 1:
        description.ask("separator", "The header has one column only: what stands between the columns?")
    elif others:
        description.ask(
            "separator", f"The header has {' and '.join(others)} too. Is it separated by {SEPARATORS[sign]}?"
        )
    return sign, headers[sign]


class _Guess:
    """Assigns the columns to the keys of data.table, one key after the other."""

    def __init__(self, columns: list[Column], description: Description) -> None:
        self.columns, self.description = columns, description
        self.taken: set[str] = set()

    def free(self) -> list[Column]:
        """The columns that no key names yet."""
        return [column for column in self.columns if column.name not in self.taken]

    def named(self, key: str) -> list[Column]:
        """The free columns whose name means the key."""
        return [column for column in self.free() if folded(column.name) in HEADERS[key]]

    def take(self, key: str, column: Column) -> None:
        """Assign a column."""
        self.description.values[key] = column.name
        self.taken.add(column.name)

    def pick(self, key: str, problem: Callable[[Column], str]) -> Column | None:
        """Assign the one column whose name means the key and whose cells fit; ask if there are several, or none fits.

        Args:
            problem: why the cells of a column do not fit; "" if they do.
        """
        named = self.named(key)
        fitting = [column for column in named if not problem(column)]
        if len(fitting) == 1:
            self.take(key, fitting[0])
            return fitting[0]
        if fitting:
            self.description.ask(key, f"Which column is it: {_listed([c.name for c in fitting])}?")
        for column in named:
            if column not in fitting:
                self.description.ask(key, f"Is it `{column.name}`? {problem(column)}")
        return None

    def images(self, table: Path) -> None:
        """The columns image_id and path, and the data folder: they are certain if the files exist."""
        description = self.description
        of_files = [c for c in self.columns if c.words and all(is_image(text) for text in c.words[:SAMPLE])]
        for root in (table.parent, table.parent.parent):
            existing = [column for column in of_files if _exist(root, column)]
            if existing:
                self._paths(existing)
            archives, names = _archives_and_names(root)
            by_name = [c for c in of_files if archives or (names and names.issuperset(c.words))]
            if description.values.get("path") or by_name:
                description.root = root
                break
        description.values["file"] = table.relative_to(description.root).as_posix()
        if description.values.get("path"):
            return
        if by_name:
            self.take("image_id", by_name[0])
            if len(by_name) > 1:
                description.ask("image_id", f"Which column is it: {_listed([c.name for c in by_name])}?")
            if archives:
                listed = _listed([path.name for path in archives])
                description.note(
                    "path", f"The images are looked for in {listed}, which this command does not open."
                )
            return
        self._no_files(of_files)

    def _paths(self, existing: list[Column]) -> None:
        """The column path, whose files exist, and the ids of the images."""
        column = existing[0]
        self.take("path", column)
        if len(existing) > 1:
            self.description.ask("path", f"Which column is it: {_listed([c.name for c in existing])}?")
        if self.pick("image_id", _unique) is None and not self.description.questions.get("image_id"):
            if column.repeats:
                self.description.ask("image_id", "Which column has an id for each image?")
            else:
                self.description.values["image_id"] = column.name
                self.description.note("image_id", "The paths are the ids of the images.")
        self.description.values.setdefault("image_id", UNANSWERED)

    def _no_files(self, of_files: list[Column]) -> None:
        """Ask for the files: no column has the path or the name of files that exist."""
        root = self.description.root
        if not of_files:
            self.pick("image_id", _unique)
            self.description.values.setdefault("image_id", UNANSWERED)
            stems = {Path(name).stem: name for name in _archives_and_names(root)[1]}
            for column in self.columns:
                if stems and column.words and set(column.words) <= set(stems):
                    word = column.words[0]
                    self.description.ask(
                        "image_id", f"Is it `{column.name}`? An id is the name of a file with its ending: write "
                        f"{stems[word]} instead of {word} in the table, and so on. Then run this command again.",
                    )  # fmt: skip
                    return
            self.description.ask(
                "image_id", f"Which file is an image's? No column has names that end in .png, .jpg or .dcm. Add a "
                f"column with the path of each file below {root}, and name it in `path`.",
            )  # fmt: skip
            return
        column = of_files[0]
        self.take("image_id", column)
        name = column.words[0]
        folder = _search(root, name.rpartition("/")[2])
        if folder is None:
            self.description.ask(
                "path", f"Where is {name} of the column `{column.name}`? It is not in {root} or below it. Move the "
                "images there, or the table to them, and run this command again.",
            )  # fmt: skip
        else:
            self.description.ask(
                "path", f"{name} of the column `{column.name}` is in {folder}/, which is not searched. Rename that "
                "folder to images, or write the path below the data folder into the table. Then run this command "
                "again.",
            )  # fmt: skip

    def require_patient(self) -> None:
        """Ask for the patient: a wrong one would put a person into training and test."""
        if self.description.questions.get("patient_id"):
            self.description.values["patient_id"] = UNANSWERED
            return
        # A column of ids repeats, but not a few words only, and its name means nothing else.
        unnamed = [c for c in self.free() if all(folded(c.name) not in words for words in HEADERS.values())]
        dates = [c for c in unnamed if c.words and DATE.fullmatch(c.words[0])]
        maybe = [
            c.name
            for c in unnamed
            if c.repeats and len(c.words) > self.description.rows / 20 and c not in dates
        ]
        hint = f" Perhaps {_listed(maybe)}." if maybe else ""
        image = self.description.values.get("image_id", "image_id")
        self.description.values["patient_id"] = UNANSWERED
        self.description.ask(
            "patient_id", f"Which column has the patient's id?{hint} All images of a patient go to one split. If the "
            f"table has none, write {image}: each image then counts as a patient of its own, which makes the "
            "test look better than it is if a patient has several.",
        )  # fmt: skip

    def words(self, key: str, mapping: str, meaning: Callable[[Column], dict[str, str | None]]) -> None:
        """A column with few words (sex, view), and the words that need a meaning.

        Args:
            key: of the column.
            mapping: key of the mapping from its words.
            meaning: word -> meaning, of the words that are certain.
        """
        column = self.pick(key, lambda column: "" if len(column.words) <= 20 else "It has too many words.")
        if column is None:
            if not self.description.questions.get(key):
                for other in self.free():
                    if other.words and set(meaning(other)) == set(other.words) and not _is_label(other):
                        self.description.ask(key, f"Is it `{other.name}`? Its words: {_counts(other)}.")
            return
        certain = meaning(column)
        standard = {"M", "F"} if key == "sex" else set(PIPELINE_VIEWS)
        self.description.values[mapping] = {
            word: value for word, value in certain.items() if not (word in standard and word == value)
        }
        if "LATERAL" in certain.values():
            self.description.note(key, "Lateral images are left out, unless data.views has LATERAL.")
        unclear = [word for word in column.words if word not in certain]
        if key == "view" and "" in column.cells:
            unclear.append("")
        if unclear:
            allowed = "M, F or null (unknown)" if key == "sex" else ", ".join(PIPELINE_VIEWS)
            self.description.ask(
                mapping, f"Meaning of {_listed([repr(word) for word in unclear])}? All words: {_counts(column)}. Map "
                f"each to {allowed}.",
            )  # fmt: skip

    def dates(self) -> None:
        """Dates are not used; say so where one may expect it."""
        for column in self.free():
            if column.words and all(DATE.fullmatch(text) for text in column.words):
                self.taken.add(column.name)
                self.description.note(
                    "follow_up", f"`{column.name}` holds dates, which are not read. The order of a patient's studies "
                    "is checked if a column has their numbers: 0, 1, 2, …",
                )  # fmt: skip

    def labels(self) -> None:
        """The findings: one column for all, or a column for each."""
        if not list_column(self.free(), self.description):
            mark_columns(self.free(), self.description)
        used = self.description.values
        self.taken |= {*used.get("findings", {}).values(), used.get("labels"), used.get("no_finding")} - {
            None
        }

    def unused(self) -> None:
        """Name the columns that are not read."""
        asked = {word for _, word, _ in self.description.doubtful}
        names = [column.name for column in self.free() if column.name not in asked]
        if names:
            self.description.note("file", f"Columns that are not read: {_listed(names)}.")


def _complete(column: Column) -> str:
    return f"It is empty in {column.cells['']} rows." if column.cells[""] else ""


def _unique(column: Column) -> str:
    return _complete(column) or ("It has a cell that occurs twice." if column.repeats else "")


def _whole(column: Column) -> str:
    wrong = [text for text in column.cells if not re.fullmatch(r"\d+(\.0*)?", text)]
    return f"{wrong[0]!r} is not a whole number." if wrong else ""


def _age(column: Column) -> str:
    wrong = [text for text in column.words if not re.fullmatch(r"-?\d+(\.0*)?", text)]
    if wrong:
        return f"{wrong[0]!r} is not a whole number of years."
    high = [text for text in column.words if float(text) > 120]
    return f"{high[0]} is no age in years." if 2 * len(high) > len(column.words) else ""


def _among(allowed: set[str]) -> Callable[[Column], str]:
    def problem(column: Column) -> str:
        wrong = [text for text in column.cells if text not in allowed]
        words = ", ".join(sorted(allowed - {""}))
        return f"{wrong[0]!r} is not one of {words}: write these in the table." if wrong else ""

    return problem


def _sex_words(column: Column) -> dict[str, str | None]:
    """The words, if all are of one language."""
    unknown: dict[str, str | None] = {word: None for word in column.words if folded(word) in NO_SEX}
    for language in SEXES:
        known = {word: language[folded(word)] for word in column.words if folded(word) in language}
        if known and len(known) + len(unknown) == len(column.words):
            # M alone is male in one language and female in another.
            return {**known, **unknown} if len(set(known.values())) == 2 else unknown
    return unknown


def _view_words(column: Column) -> dict[str, str | None]:
    return {word: VIEWS[folded(word)] for word in column.words if folded(word) in VIEWS}


def _is_label(column: Column) -> bool:
    return set(column.words) <= set(LABEL_VALUES)


def _exist(root: Path, column: Column) -> bool:
    """Whether most of the files exist; validation names those that do not."""
    sample = column.words[:SAMPLE]
    return 2 * sum((root / text).is_file() for text in sample) > len(sample)


def _archives_and_names(root: Path) -> tuple[list[Path], set[str]]:
    """Archives images*, and names of the images in images*/: there, images are found by their name."""
    try:
        archives, folders = find_sources(root)
        return archives, {name for folder in folders for name in os.listdir(folder)}
    except (UserError, OSError):  # there are none
        return [], set()


def _search(root: Path, name: str) -> str | None:
    """Folder below the data folder that has a file of this name."""
    seen = 0
    for folder, _, names in os.walk(root):
        if name in names:
            return Path(folder).relative_to(root).as_posix()
        seen += len(names)
        if seen > SEARCHED:
            break
    return None


def _counts(column: Column) -> str:
    return ", ".join(f"{text!r} ({rows:,})" for text, rows in column.cells.most_common(20))


def _listed(names: list[str]) -> str:
    return ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
