"""The description of a user's own table as YAML: the sections of params.yaml, with notes and questions as comments."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ral.config.data import TableConfig
from ral.config.keys import as_yaml, comment, default
from ral.data.images.file_names import shown


@dataclass(frozen=True)
class Column:
    """A column of the table: its name, and its cells with their number of rows."""

    name: str
    cells: Counter[str]

    @property
    def words(self) -> list[str]:
        """The cells that are not empty, without repetition, the most frequent first."""
        return [text for text, _ in self.cells.most_common() if text]

    @property
    def repeats(self) -> bool:
        """Whether a cell that is not empty occurs in two rows."""
        return any(rows > 1 for text, rows in self.cells.items() if text)


@dataclass
class Description:
    """What is known about a table.

    Attributes:
        root: the data folder.
        rows: number of rows.
        values: key of data.table -> value.
        notes, questions: key of data.table -> sentences. A question is what a person must decide.
        doubtful: finding, or "?" -> word or column that may be one, with the reason why that is asked.
    """

    root: Path
    rows: int = 0
    values: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=dict)
    questions: dict[str, list[str]] = field(default_factory=dict)
    doubtful: list[tuple[str, str, str]] = field(default_factory=list)

    def note(self, key: str, text: str) -> None:
        """Add a sentence that explains a value."""
        self.notes.setdefault(key, []).append(text)

    def ask(self, key: str, text: str) -> None:
        """Add a question."""
        self.questions.setdefault(key, []).append(text)

    @property
    def open_questions(self) -> int:
        """Number of questions."""
        return sum(map(len, self.questions.values())) + len(self.doubtful)

    def sections(self) -> list[str]:
        """The lines of the sections data and split, as far as the table decides them."""
        return [
            "data:",
            "  source: table",
            f"  root: {as_yaml(str(self.root))}",
            "  table:",
            *self.table_section(),
            "split:",
            f"  method: {self.split_method}",
        ]

    @property
    def split_method(self) -> str:
        """split.method: the table's own split if it has one."""
        return "official" if "split" in self.values else "stratified"

    def table_section(self) -> list[str]:
        """The lines of data.table below its own line: every key, with its questions and notes above it."""
        lines: list[str] = []
        for key, about in TableConfig.model_fields.items():
            lines += [f"# ? {shown(text)}" for text in self.questions.get(key, [])]
            lines += [f"# {shown(text)}" for text in self.notes.get(key, [])]
            value = self.values.get(key, default(about)) or None
            if key == "findings" and value:
                lines += ["findings:", *(f"  {_entry(name, word)}" for name, word in value.items())]
            else:
                lines.append(f"{f'{key}: {as_yaml(value)}':<34}  # {comment(about)}")
            if key == "findings":
                for name, word, question in self.doubtful:
                    lines += [f"  # ? {shown(question)}", f"  # {_entry(name, word)}"]
        return [f"    {line}" for line in lines]


def _entry(name: str, word: str) -> str:
    """A line `name: word` with the quotes that YAML needs."""
    return as_yaml({name: word})[1:-1]
