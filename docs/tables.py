"""Writes the tables of docs/: what the code registers (losses, metrics, notifications).

python docs/tables.py
"""

import argparse
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

DOCS = Path(__file__).parent

# What a metric is computed from, for people.
INPUTS = {
    "logits": "raw logits",
    "max_f1": "decisions at the max_f1 threshold",
    "rule": "decisions at the threshold of `threshold.rule`",
    "half": "decisions at a score of 0.5",
    "scores": "calibrated scores",
    "group": "the images of a group",
    "readings": "two readings",
}


def losses() -> str:
    """docs/losses.md with its table of the losses."""
    from ral.config.losses import LossConfig
    from ral.losses import LOSSES

    rows = []
    for name, loss in LOSSES.items():
        options = type(LossConfig.model_fields[name].get_default())
        text = " ".join((options.__doc__ or "").split()).removesuffix(" No options.").removesuffix(".")
        rows.append((f"`{name}`", text, "yes" if loss.needs_counts else ""))
    return replaced("losses.md", ("name", "loss", "class counts"), rows)


def metrics() -> str:
    """docs/evaluation.md with its table of the metrics."""
    from ral.evaluation.specs import SPECS

    rows = [(metric.label, f"`{metric.name}`", INPUTS[metric.input], metric.definition) for metric in SPECS]
    return replaced("evaluation.md", ("metric", "name in files", "computed from", "definition"), rows)


def notifications() -> str:
    """docs/runbook.md with its table of the notifications."""
    from flows.notifications import EVENTS

    return replaced("runbook.md", ("event", "text"), [(event, f"`{text}`") for event, text in EVENTS.items()])


PAGES = {
    "losses.md": losses,
    "evaluation.md": metrics,
    "runbook.md": notifications,
}


def replaced(page: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The text of a page with the rows of the table that has this header."""
    text = (DOCS / page).read_text(encoding="utf-8")
    top = "".join(f"| {' | '.join(cells)} |\n" for cells in (header, ["---"] * len(header)))
    table = top + "".join(f"| {' | '.join(cells)} |\n".replace("|  |", "| |") for cells in rows)
    new, count = re.subn(rf"^{re.escape(top)}(?:\|.*\n)*", lambda _: table, text, flags=re.MULTILINE)
    assert count == 1, f"docs/{page} has {count} tables with the header {header}"
    return new


if __name__ == "__main__":
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    for name, content in PAGES.items():
        (DOCS / name).write_text(content(), encoding="utf-8")
