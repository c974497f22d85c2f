"""The pages of docs/ agree with the code, and each is linked."""

import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

from docs import tables
from flows.settings import FlowsEnvironment
from ral.config.environment import keys

ROOT = Path(__file__).parent.parent


# The lines under every symptom of the runbook, in this order.
SYMPTOM = ["Cause", "What to do", "What the system does", "Test"]


def names_existing_tests(text: str) -> bool:
    """Whether `text` names at least one test, and every test that it names exists."""
    written = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    names = re.findall(r"`(test_\w+)`", text)
    return bool(names) and all(f"def {name}(" in written for name in names)


def test_every_row_of_bad_input_names_its_tests() -> None:
    lines = (ROOT / "docs/bad-input.md").read_text().splitlines()
    rows = [line for line in lines if line.startswith("| ") and not line.startswith(("| input", "| ---"))]
    assert len(rows) > 20
    for row in rows:
        assert names_existing_tests(row.rsplit("|", 2)[1]), row


def test_a_test_that_a_page_names_with_its_file_is_there() -> None:
    written: dict[str, str] = defaultdict(str)
    for path in (ROOT / "tests").rglob("test_*.py"):
        written[path.stem] += path.read_text()
    named = {
        (page.name, *pair)
        for page in (ROOT / "docs").glob("*.md")
        for pair in re.findall(r"`(test_\w+)::(test_\w+)", page.read_text())
    }
    assert named
    assert [item for item in named if f"def {item[2]}(" not in written[item[1]]] == []


def symptoms(page: str) -> dict[str, dict[str, str]]:
    """Every level-3 heading of a page with its list: label -> text."""
    sections = {}
    for section in re.split(r"^### ", page, flags=re.MULTILINE)[1:]:
        heading, _, body = section.partition("\n")
        items = re.split(r"^- \*\*(.+?):\*\* ", body.partition("\n## ")[0], flags=re.MULTILINE)[1:]
        assert heading not in sections, heading
        sections[heading] = dict(zip(items[::2], items[1::2], strict=True))
    return sections


def test_every_symptom_of_the_runbook_names_its_tests() -> None:
    sections = symptoms((ROOT / "docs/runbook.md").read_text())
    assert len(sections) > 40
    for heading, items in sections.items():
        assert list(items) == SYMPTOM, heading
        assert names_existing_tests(items["Test"]), (heading, items["Test"])


def test_the_contents_of_the_runbook_list_its_sections() -> None:
    page = (ROOT / "docs/runbook.md").read_text()
    titles = [
        title.lower().replace(" ", "-").replace(",", "") for title in re.findall(r"^## (.+)$", page, re.M)
    ]
    assert list(dict.fromkeys(re.findall(r"\(#([\w-]+)\)", page.partition("## Contents")[2]))) == titles[1:]


def test_the_tables_of_the_sizing_page_are_those_of_its_script() -> None:
    script = [sys.executable, str(ROOT / "docs/sizing_tables.py")]
    printed = subprocess.run(script, capture_output=True, text=True, check=True).stdout
    page = (ROOT / "docs/sizing.md").read_text()
    for table in printed.strip().split("\n\n"):
        assert table in page


def test_the_tables_of_what_the_code_registers_are_those_of_their_script() -> None:
    for name, content in tables.PAGES.items():
        page = (ROOT / "docs" / name).read_text()
        assert content() == page, f"docs/{name} is out of date: python docs/tables.py"


def test_the_runbook_names_pages_and_keys_that_exist() -> None:
    page = (ROOT / "docs/runbook.md").read_text()
    for named in re.findall(r"\]\(([\w./-]+)(?:#[\w-]+)?\)", page):
        assert (ROOT / "docs" / named).exists(), named
    known = {key for key, _ in keys(FlowsEnvironment)}
    for key in re.findall(r"`((?:flows|training|dask)\.(?!tidy)[\w.]+)`", page):
        assert key in known or any(other.startswith(f"{key}.") for other in known), key


def test_every_page_is_linked() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    linked = {
        (page.parent / target).resolve()
        for page in pages
        for target in re.findall(r"\]\((?!https?://)([\w./-]+)(?:#[\w-]+)?\)", page.read_text())
        if (page.parent / target).resolve() != page.resolve()
    }
    unlinked = [path.name for path in (ROOT / "docs").glob("*.md") if path.resolve() not in linked]
    assert not unlinked
    missing = [str(path) for path in linked if not path.exists()]
    assert not missing
