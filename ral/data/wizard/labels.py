"""Guesses which columns or words of a user's own table are findings."""

import re
from collections import Counter

from ral.config.data import TableConfig
from ral.data.sources.base import LABEL_VALUES
from ral.data.wizard.description import Column, Description
from ral.data.wizard.words import FINDINGS, HEADERS, folded
from ral.labels import NO_FINDING

# What may stand between the findings of one cell.
SIGNS = ("|", ";", ",", "+", "&", "/")

# More words than this are a report in free text.
MAX_WORDS = 100


def list_column(columns: list[Column], description: Description) -> bool:
    """Describe the column that holds all findings of an image, if there is one.

    Returns:
        Whether there is one. A column counts if half of its words are known, or if its name says so.
    """
    candidates = []
    for column in columns:
        words = _words(column, _sign(column))
        known = sum(folded(word) in FINDINGS for word in words)
        if words and not _is_marked(column) and (2 * known >= len(words) or _is_named(column)):
            candidates.append((known / len(words), _is_named(column), column))
    if not candidates:
        return False
    share, _, column = max(candidates, key=lambda item: item[:2])
    if len(candidates) > 1:
        names = ", ".join(f"`{item[2].name}`" for item in candidates)
        description.ask("labels", f"Is it `{column.name}`? {names} may all hold findings.")
    words = _words(column, _sign(column))
    if len(words) > MAX_WORDS:
        description.ask(
            "labels", f"Is it `{column.name}`? It has {len(words):,} different words and only {share:.0%} are known: a "
            "report in free text cannot be read. Add a column with the findings, or a column for each.",
        )  # fmt: skip
        return False
    description.values["labels"] = column.name
    if not share:
        description.ask("labels", f"Is it `{column.name}`? None of its words is known.")
    _joint(column, description)
    _findings(words, description)
    empty = column.cells[""]
    if empty:
        description.ask(
            "labels", f"What does an empty cell mean? {empty:,} of {description.rows:,} rows have one. It counts as "
            "unknown, not as normal. If it means that nothing was found, write a word for that into the table, and "
            "here as no_finding.",
        )  # fmt: skip
    return True


def _is_named(column: Column) -> bool:
    return folded(column.name) in HEADERS["labels"]


def _is_marked(column: Column) -> bool:
    return set(column.words) <= set(LABEL_VALUES)


def _sign(column: Column) -> str:
    """The sign that splits the cells into the most known words."""

    def known(sign: str) -> int:
        return sum(folded(word) in FINDINGS for word in _words(column, sign))

    counts = {sign: sum(sign in text for text in column.words) for sign in SIGNS}
    return max(SIGNS, key=lambda sign: (counts[sign] > 0, known(sign), counts[sign]))


def _words(column: Column, sign: str) -> Counter[str]:
    """Word -> number of rows."""
    words: Counter[str] = Counter()
    for text, rows in column.cells.items():
        for word in text.split(sign):
            if word.strip():
                words[word.strip()] += rows
    return words


def _joint(column: Column, description: Description) -> None:
    """What stands between two words, with its spaces; the pipeline splits by exactly that."""
    sign = _sign(column)
    between = Counter(
        joint for text in column.words for joint in re.findall(rf"(?<=\S)\s*{re.escape(sign)}\s*(?=\S)", text)
    )
    joint = between.most_common(1)[0][0] if between else TableConfig().label_separator
    description.values["label_separator"] = joint
    if not between:
        description.note("label_separator", "No row has two findings.")
    if len(between) > 1:
        ways = ", ".join(f"{text!r}" for text in between)
        description.ask(
            "label_separator",
            f"Words are joined in several ways: {ways}. Write them in one way in the table.",
        )
    loose = [
        text for text in column.words if any(part != part.strip() or not part for part in text.split(joint))
    ]
    if loose and len(between) <= 1:
        description.ask(
            "labels",
            f"Cells such as {loose[0]!r} have an empty word, or spaces around a word. Remove them in the table.",
        )


def _findings(words: Counter[str], description: Description) -> None:
    """Assign words, or columns, to findings."""
    findings: dict[str, str] = {}
    description.values["findings"] = findings
    for word, rows in words.most_common():
        finding = FINDINGS.get(folded(word))
        if finding is None:
            description.doubtful.append(("?", word, f"Is it a finding ({_rows(rows)})? Give it a name."))
        elif finding == NO_FINDING:
            other = description.values.setdefault("no_finding", word)
            if other != word:
                description.ask(
                    "no_finding", f"Is it `{other}` or `{word}`? Only one can be named: use one in the table."
                )
        elif finding in findings:
            description.doubtful.append(
                (
                    finding,
                    word,
                    f"`{findings[finding]}` looks like the same finding. Use one word, or another name.",
                )
            )
        else:
            findings[finding] = word


def mark_columns(columns: list[Column], description: Description) -> None:
    """Describe the columns that mark one finding each with 1 and 0."""
    marks: Counter[str] = Counter()
    for column in columns:
        known = folded(column.name) in FINDINGS
        if column.words and _is_marked(column):
            marks[column.name] = sum(
                rows for text, rows in column.cells.items() if LABEL_VALUES[text] == "present"
            )
        elif known:
            wrong = next((text for text in column.words if text not in LABEL_VALUES), "only empty cells")
            description.ask(
                "findings", f"The column `{column.name}` has {wrong!r}: write 1, 0, -1 (uncertain) or nothing in the "
                "table.",
            )  # fmt: skip
    _findings(marks, description)
    if not description.values["findings"] and "labels" not in description.questions:
        description.ask("findings", "Which columns are findings? None has a name that is known.")
    empty = sum(
        column.cells[""] for column in columns if column.name in description.values["findings"].values()
    )
    if empty:
        description.note(
            "findings", f"{empty:,} cells are empty: unknown, unless data.unmentioned is negative."
        )


def _rows(rows: int) -> str:
    return f"{rows:,} row{'s' * (rows != 1)}"
