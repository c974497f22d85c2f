"""The pages of docs/ agree with the code, and each is linked."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from flows.settings import FlowsEnvironment
from ral.config.environment import keys

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(("page", "heads"), [("bad-input.md", ("| input",)), ("runbook.md", ("| in ",))])
def test_every_row_has_its_test(page: str, heads: tuple[str, ...]) -> None:
    written = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    text = (ROOT / "docs" / page).read_text().partition("## What grows")[0]
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    rows = [row for row in rows if not row.startswith((*heads, "| ---"))]
    assert len(rows) > 20
    for row in rows:
        named = re.findall(r"`(test_\w+)`", row.rsplit("|", 2)[1])
        assert named, f"no test is named: {row}"
        for name in named:
            assert f"def {name}(" in written, name


def test_the_tables_of_the_sizing_page_are_those_of_its_script() -> None:
    script = [sys.executable, str(ROOT / "docs/sizing_tables.py")]
    printed = subprocess.run(script, capture_output=True, text=True, check=True).stdout
    page = (ROOT / "docs/sizing.md").read_text()
    for table in printed.strip().split("\n\n"):
        assert table in page


def test_the_runbook_names_commands_that_exist(run) -> None:
    page = (ROOT / "docs/runbook.md").read_text()
    for module in set(re.findall(r"python -m ((?:flows|tasks|ral)[\w.]*)", page)) - {"ral.release"}:
        assert importlib.util.find_spec(module), module
    for words in sorted(set(re.findall(r"prefect ((?:[a-z-]+ )*[a-z-]+)(?=[ `])", page))):
        if words.split()[0] in ("deploy", "deployment", "flow-run", "work-pool", "worker"):
            command = words.split()[: 3 if words.startswith("deployment schedule") else 2]
            run(sys.executable, "-m", "prefect", *command, "--help", cwd=ROOT)
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
