"""Messages about the results of validation, for people."""

from collections.abc import Sequence

from ral.data.validation.result import Check, Sample

# Maximum characters of a cell that a message quotes.
MAX_QUOTED = 300


def failures(checks: Sequence[Check]) -> list[str]:
    """Lines about failed checks of severity error: name, count, sample rows, remedy; empty if all passed."""
    lines = []
    for check in checks:
        if check.stops:
            lines.append(f"- {_failure(check)}.")
            lines += [f"    {_row(sample)}" for sample in check.samples]
            lines.append(f"  {check.advice}")
    return lines


def warnings(checks: Sequence[Check]) -> list[str]:
    """Failed checks of severity warning, one line each."""
    lines = []
    for check in checks:
        if check.severity == "warning" and not check.passed:
            shown = check.samples[0] if check.samples and check.samples[0].value else None
            first = f" The first: {_row(shown)}." if shown else ""
            lines.append(f"{_failure(check)}.{first} {check.advice}")
    return lines


def _failure(check: Check) -> str:
    rows = check.unexpected
    return f'{rows:,} row{"s" * (rows != 1)} failed "{check.check}"'


def _row(sample: Sample) -> str:
    return f"row {sample.row}, {_cell(sample.image_id)}: {_cell(sample.value)}"


def _cell(value: str | None) -> str:
    """Format a cell: quoted if it has invisible characters, truncated if it is long."""
    cut = value if value is None or len(value) <= MAX_QUOTED else value[:MAX_QUOTED] + "…"
    return cut if cut and cut == cut.strip() and cut.isprintable() else repr(cut)
