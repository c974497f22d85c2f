"""Which run made a report: run.css beside the page, since the page itself depends on parameters, data and code only.

A style sheet, because a page opened from a disk may load one beside it, and because it can run nothing. Its rule names
the page by a digest that the page carries, so it says nothing about another report at the same path.
"""

import hashlib
import re
from datetime import datetime
from pathlib import Path

from ral import artifacts
from ral.files import atomic_write
from ral.runs import RunRecord

# Name of the style sheet beside the report.
RUN_FILE = artifacts.RUN_INFO.name

_EMPTY = 'data-report=""'
_DIGEST = re.compile(r'data-report="([0-9a-f]{16})"')


def with_digest(page: str) -> str:
    """The page with the digest of its content in its root element."""
    return page.replace(_EMPTY, f'data-report="{hashlib.sha256(page.encode()).hexdigest()[:16]}"', 1)


def write_run_info(page: Path, record: RunRecord) -> None:
    """Write run.css beside a report: id, commit and date of the run that made it.

    Args:
        page: the report.
        record: of the run, in which the step report has begun.
    """
    digest = _DIGEST.search(page.read_text(encoding="utf-8"))
    assert digest is not None
    started = datetime.fromisoformat(record.steps["report"].started)
    commit = record.commit[:12] if record.commit else "no git repository"
    values = {
        "id": record.id,
        "commit": f"{commit} and uncommitted changes" if record.uncommitted_changes else commit,
        "date": f"{started:%Y-%m-%d %H:%M} UTC",
    }
    rules = " ".join(f'--run-{name}: "{_plain(value)}";' for name, value in values.items())
    with atomic_write(page.with_name(RUN_FILE)) as draft:
        draft.write_text(f':root[data-report="{digest[1]}"] {{ {rules} }}\n', encoding="utf-8", newline="\n")


def _plain(value: str) -> str:
    """Text that needs no escaping in a style sheet; a run id comes from the environment."""
    return re.sub(r"[^\w .:+-]", "?", value, flags=re.ASCII)
