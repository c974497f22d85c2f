"""Describe your own table: read it, and write the section data.table of params.yaml.

    python -m ral.data.sources.table FILE.csv                       # prints the sections
    python -m ral.data.sources.table FILE.csv --out params.yaml     # writes them into params.yaml

Columns, words and separators are guessed from the header and from all rows. What is not certain is a question: a
comment that begins with `# ?`. Answer the questions, then check the file with `python -m ral.config`.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ral.errors import exit_with_message, plain

if TYPE_CHECKING:
    from ral.data.wizard.description import Description


def main() -> None:
    """Describe the table that the command line names."""
    parser = argparse.ArgumentParser(
        prog="python -m ral.data.sources.table",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "table", type=Path, help="your table: .csv, .csv.gz or .parquet, UTF-8, with a header"
    )
    parser.add_argument("--out", type=Path, help="params.yaml to write; without it, the sections are printed")
    parser.add_argument(
        "--params",
        type=Path,
        default=Path("params.yaml"),
        help="file with the other parameters for --out (params.yaml)",
    )
    options = parser.parse_args()
    with exit_with_message():
        from ral.data.wizard.guess import describe

        description = describe(options.table)
        if options.out is None:
            print("\n".join(description.sections()))
        else:
            _write(description, options.params, options.out)
    print(plain(_summary(description, options.table, options.out)), file=sys.stderr)


def _write(description: "Description", start: Path, out: Path) -> None:
    """Write the parameters of `start` with the sections of the table."""
    from ral.config.base import read_yaml
    from ral.config.keys import layout
    from ral.files import atomic_write

    content = read_yaml(start)
    # The label set and the findings are those of another source.
    content["data"] |= {
        "source": "table", "root": str(description.root), "labels": None, "findings": None, "table": None,
    }  # fmt: skip
    content["split"] |= {"method": description.split_method}
    lines = layout(content).split("\n")
    first = next(number for number, line in enumerate(lines) if line.startswith("  table:")) + 1
    after = next(number for number in range(first, len(lines)) if not lines[number].startswith("    "))
    with atomic_write(out) as draft:
        draft.write_text(
            "\n".join([*lines[:first], *description.table_section(), *lines[after:]]), encoding="utf-8"
        )


def _summary(description: "Description", table: Path, out: Path | None) -> str:
    """What a person does next."""
    count = description.open_questions
    asked = f"{count} question{'s' * (count != 1)}"
    where = (
        f"in {out}"
        if out
        else "in these sections, once they are in your params.yaml (--out writes them there)"
    )
    lines = [f"{table}: {description.rows:,} rows, {asked}{':' if count else '.'}"]
    lines += [f"- {key}: {text}" for key, texts in description.questions.items() for text in texts]
    lines += [f"- findings: {word!r}: {question}" for _, word, question in description.doubtful]
    if count:
        lines.append(f"Answer the lines that begin with `# ?` {where}. Then:")
    else:
        lines.append(f"Look at the words and columns {where}. Then:")
    return "\n".join([*lines, "    python -m ral.config && dvc exp run"])
