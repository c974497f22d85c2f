"""Code blocks of README and docs with their tags, and the commands in them (see CONTRIBUTING.md).

A tag is an HTML comment on the line above a block, invisible on the page:

    <!-- run: "TEXT" "TEXT" -->    run it; it must succeed and print every text
    <!-- serve: "TEXT" "http://ADDRESS" -->
                                   start it in a terminal of its own, and go on when it has printed the text
                                   and the address answers
    <!-- not run: REASON -->       why it cannot be run by a test, and what tests it instead
    <!-- file: PATH -->            write the block, of any language, to this file of the project
    <!-- output -->                a block of text: what the block before it printed, but for the digits
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from conftest import ROOT

SHELL = "bash"
BLOCK = re.compile(
    r"^(?P<indent> *)(?:<!-- (?P<tag>(?:(?!-->).)+?) -->\n(?P=indent))?"
    r"```(?P<language>\w*)\n(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
TAG = re.compile(
    r'(?P<kind>run|serve): (?P<texts>"[^"]+"(?:\s+"[^"]+")*)|'
    r"(?P<other>not run|file): (?P<rest>.+)|(?P<output>output)",
    re.DOTALL,
)
# Words that begin a command of the project or of its tools.
PROGRAMS = ("python -m", "make", "dvc", "prefect")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page; `kind` is empty if it has no tag, `rest` is a reason or a path.

    `section` counts the level-2 headings above it.
    """

    page: str
    line: int
    language: str
    text: str
    kind: str
    expected: tuple[str, ...]
    rest: str
    section: int

    @property
    def where(self) -> str:
        """Page and line, for messages."""
        return f"{self.page}:{self.line}"


def pages() -> list[str]:
    """README, then the other pages, as paths in the project."""
    first = ["README.md", "CONTRIBUTING.md", "SECURITY.md"]
    return [*first, *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md"))]


def blocks(page: str, content: str) -> list[Block]:
    """The fenced blocks of a page, in order.

    Raises:
        ValueError: the comment above a block is no tag.
    """
    found = []
    for match in BLOCK.finditer(content):
        line = content.count("\n", 0, match.start("language")) + 1
        tag = TAG.fullmatch(match["tag"]) if match["tag"] else None
        if match["tag"] and not tag:
            raise ValueError(f"{page}:{line}: {match['tag']!r} is no tag. Allowed: tests/pages.py.")
        kind, expected, rest = "", (), ""
        if tag:
            kind = tag["kind"] or tag["other"] or tag["output"]
            expected = tuple(re.findall('"([^"]+)"', tag["texts"] or ""))
            rest = tag["rest"] or ""
        section = len(re.findall("^## ", content[: match.start()], flags=re.MULTILINE))
        text = re.sub(f"^{match['indent']}", "", match["text"], flags=re.MULTILINE)
        found.append(Block(page, line, match["language"], text, kind, expected, rest, section))
    return found


def commands(text: str) -> Iterator[list[str]]:
    """The words of every simple command of a shell block, without comments, variables in front, and here-documents.

    Raises:
        ValueError: a quotation mark is not closed.
    """
    text = re.sub(r"<<'?(\w+)'?\n.*?^\1$", "", text, flags=re.MULTILINE | re.DOTALL)
    begun = ""
    for line in text.replace("\\\n", " ").splitlines():
        begun += line
        lexer = shlex.shlex(begun, posix=True, punctuation_chars="();|&")
        lexer.whitespace_split = True
        try:
            words = [*lexer, ";"]
        except ValueError:  # a quotation that ends on a later line
            begun += "\n"
            continue
        begun = ""
        command: list[str] = []
        for word in words:
            if not word.strip("();|&"):
                if command:
                    yield command
                command = []
            elif command or not re.fullmatch(r"\w+=.*", word):
                command.append(word)
    if begun:
        raise ValueError(f"a quotation mark is not closed: {begun}")


def inline_commands(content: str) -> Iterator[list[str]]:
    """Commands of the project and its tools in the text of a page, such as `make run`."""
    outside = BLOCK.sub("", content)
    for span in re.findall(r"`([^`]+)`", outside):
        yield from commands(" ".join(span.split())) if span.startswith(PROGRAMS) else ()


def read(page: str) -> str:
    """Text of a page."""
    return (Path(ROOT) / page).read_text(encoding="utf-8")
