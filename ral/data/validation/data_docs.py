"""Data Docs: the results of Great Expectations as self-contained HTML pages without scripts.

The pages of Great Expectations itself load scripts and styles from the network and insert some table text
unescaped. Here its renderers produce the section of each column; the page around them, with the names of the
checks, is our own.
"""

import html
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Great Expectations reads this on import: telemetry is disabled by default.
os.environ.setdefault("GX_ANALYTICS_ENABLED", "False")

import great_expectations as gx
from great_expectations.core import ExpectationSuiteValidationResultSchema
from great_expectations.render.renderer import ValidationResultsPageRenderer
from great_expectations.render.view import DefaultJinjaSectionView

from ral.data.validation.gx_results import ExpectationResult
from ral.data.validation.result import Check
from ral.files import atomic_write

# No scripts and no external addresses: the pages show untrusted text from tables.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"

# Characters with a meaning in HTML or in the templates of Great Expectations are replaced by characters of Unicode's
# private use area before rendering, and by HTML entities afterwards.
_STAND_INS = {character: chr(0xE000 + index) for index, character in enumerate("&<>\"'$`{}")}
_TO_STAND_IN = str.maketrans(_STAND_INS)
_TO_ENTITY = str.maketrans({stand_in: f"&#{ord(character)};" for character, stand_in in _STAND_INS.items()})

# Words replace the icons of a font that Great Expectations would load.
_STYLE = """
body { margin: 0 auto; padding: 1.25rem; max-width: 70rem; font: 1rem/1.5 system-ui, sans-serif;
  overflow-wrap: break-word; }
table { border-collapse: collapse; margin: .5rem 0; }
th, td { padding: .25rem .5rem; border: 1px solid #bbb; text-align: left; vertical-align: top; }
td:nth-child(6) { white-space: pre-line; overflow-wrap: anywhere; }
.failed td:nth-child(4), .text-danger { color: #a11919; }
.badge { padding: 0 .3rem; border-radius: 3px; background: #e8ebee; }
.fas { font-style: normal; }
.fa-check-circle::before { content: "passed"; }
.fa-times::before { content: "failed"; }
.fa-exclamation-triangle::before { content: "error"; }
"""


def write_page(
    name: str, title: str, checks: Sequence[Check], results: Sequence[ExpectationResult], docs: Path
) -> None:
    """Write DOCS/NAME.html with the results of some checks, and DOCS/index.html with links to all pages.

    Args:
        name: name of the page.
        title: title of the page.
        checks: the checks.
        results: results of Great Expectations for the same checks.
        docs: folder for the pages.
    """
    failed = sum(not check.passed for check in checks)
    title = f"{title}: {failed} of {len(checks)} checks failed" if failed else f"{title}: passed"
    heads = ("check", "column", "severity", "result", "rows", "examples", "remedy")
    body = [
        '<p><a href="index.html">All results</a></p>',
        f"<table><tr>{''.join(f'<th>{head}</th>' for head in heads)}</tr>",
        *(_row(check) for check in sorted(checks, key=lambda check: check.passed)),
        "</table>",
        _by_column(results),
    ]
    _write(docs / f"{name}.html", title, body)
    pages = sorted(path for path in docs.glob("*.html") if path.name != "index.html")
    links = [f'<li><a href="{page.name}">{_title(page)}</a></li>' for page in pages]
    _write(docs / "index.html", "Data Docs", ["<ul>", *links, "</ul>"])


def _row(check: Check) -> str:
    cells = (
        check.check,
        check.column,
        check.severity,
        "passed" if check.passed else "failed",
        f"{check.unexpected:,}",
        "\n".join(f"row {sample.row}, {sample.image_id}: {sample.value}" for sample in check.samples),
        "" if check.passed else check.advice,
    )
    text = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
    return f'<tr class="{"passed" if check.passed else "failed"}">{text}</tr>'


def _by_column(results: Sequence[ExpectationResult]) -> str:
    """Sections of Great Expectations for each column: expected and observed values."""
    passed = sum(item.passed for item in results)
    outcome = ExpectationSuiteValidationResultSchema().load(
        {
            "success": passed == len(results),
            "results": [_stand_in(item.outcome) for item in results],
            "suite_name": "checks",
            "statistics": {
                "evaluated_expectations": len(results),
                "successful_expectations": passed,
                "unsuccessful_expectations": len(results) - passed,
                "success_percent": 100 * passed / len(results),
            },
            "meta": {"great_expectations_version": gx.__version__, "run_id": None},
        }
    )
    # Skip the first section: it describes the run and links to pages that are not written.
    sections = ValidationResultsPageRenderer().render(outcome).to_json_dict()["sections"][1:]
    view = DefaultJinjaSectionView()
    parts = [
        view.render({"section": section, "section_loop": {"index": index}})
        for index, section in enumerate(sections, 1)
    ]
    return "\n".join(parts).translate(_TO_ENTITY)


def _stand_in(value: Any) -> Any:
    """Copy a value, replacing characters that have a meaning in HTML or in a template."""
    if isinstance(value, str):
        return value.translate(_TO_STAND_IN)
    if isinstance(value, dict):
        return {key: _stand_in(item) for key, item in value.items()}
    return [_stand_in(item) for item in value] if isinstance(value, list | tuple) else value


def _write(path: Path, title: str, body: list[str]) -> None:
    head = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{html.escape(title)}</h1>",
    ]
    with atomic_write(path) as draft:
        draft.write_text("\n".join([*head, *body, "</body></html>", ""]), encoding="utf-8")


def _title(page: Path) -> str:
    """Read the title of a page."""
    match = re.search("<title>(.*?)</title>", page.read_text(encoding="utf-8"))
    return match[1] if match else page.name
