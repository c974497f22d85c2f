"""The pages of docs/ name what is there."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_every_row_of_bad_input_has_its_test() -> None:
    written = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    rows = [line for line in (ROOT / "docs/bad-input.md").read_text().splitlines() if line.startswith("| ")]
    rows = [row for row in rows if not row.startswith(("| input", "| ---"))]
    assert len(rows) > 20
    for row in rows:
        named = re.findall(r"`(test_\w+)`", row.rsplit("|", 2)[1])
        assert named, f"no test is named: {row}"
        for name in named:
            assert f"def {name}(" in written, name
