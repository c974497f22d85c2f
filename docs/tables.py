"""Writes the tables of docs/: what the code registers (losses, metrics, notifications), and the robustness audit of
real images from docs/results/robustness.csv and robustness_*.csv.

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


SHIFT_HEADER = (
    "shift", "AP", "difference", "p (Holm)", "head", "medium", "tail", "AUROC", "Brier score", "ECE", "calls"
)  # fmt: skip
PROBE_HEADER = (
    "attribute",
    "value",
    "images",
    "AUROC of the probe",
    "within pairs: change of macro AUROC",
    "p (Holm)",
)
ATTACK_HEADER = ("attack", "gray levels", "macro AP", "head AP", "medium AP", "macro AUROC")
FLIP_HEADER = ("finding", "mean change of the logit", "changed calls", "rank correlation")


def robustness() -> str:
    """docs/robustness.md with its tables of the audit of real images."""
    import pandas as pd

    from ral.wording import difference, p_value, percent, signed

    table = pd.read_csv(DOCS / "results/robustness.csv")
    rows = []
    for shift, part in table.groupby("shift", sort=False):
        of = part.set_index(["name", "metric"])
        macro = {metric: of.loc[("macro", metric)] for metric in ("ap", "auroc", "brier", "ece", "calls")}
        ap = macro["ap"]
        tiers = [signed(of.loc[(tier, "ap"), "difference"]) for tier in ("head", "medium", "tail")]
        others = [signed(macro[metric]["difference"]) for metric in ("auroc", "brier", "ece")]
        rows.append(
            (f"`{shift}`", f"{ap['value']:.3f}", difference(ap["difference"], ap["low"], ap["high"]),
             p_value(ap["p_holm"]), *tiers, *others, f"{macro['calls']['value']:,.0f}")
        )  # fmt: skip
    first = table[(table["name"] == "macro") & (table["shift"] == table["shift"].iloc[0])].set_index("metric")
    clean = {metric: f"{first.loc[metric, 'clean']:.3f}" for metric in ("ap", "auroc", "brier", "ece")}
    calls = f"{first.loc['calls', 'clean']:,.0f}"
    rows.insert(0, ("none", clean["ap"], *[""] * 5, clean["auroc"], clean["brier"], clean["ece"], calls))
    text = replaced("robustness.md", SHIFT_HEADER, rows)
    flips = pd.read_csv(DOCS / "results/robustness_flip.csv")
    flip_rows = [
        (
            "all findings"
            if row.level == "macro"
            else f"tier {row.name}"
            if row.level == "tier"
            else row.name,
            f"{row.logit:.3f}",
            f"{percent(row.changed_calls)} ({percent(row.low)} to {percent(row.high)})",
            f"{row.rank_correlation:.3f}",
        )
        for row in flips.itertuples(index=False)
    ]
    text = replaced("robustness.md", FLIP_HEADER, flip_rows, text)
    return attacks(probes(text))


def probes(text: str) -> str:
    """The page with its table of shortcut probes."""
    import pandas as pd

    from ral.wording import difference, p_value, with_interval

    within = pd.read_csv(DOCS / "results/robustness_within.csv").set_index(["attribute", "finding"])
    rows, last = [], ""
    for row in pd.read_csv(DOCS / "results/robustness_probes.csv").itertuples(index=False):
        pairs = within.loc[(row.attribute, "macro")]
        fall = (difference(pairs["difference"], pairs["low"], pairs["high"]), p_value(pairs["p_holm"]))
        value = f"{row.value} or {row.others}" if isinstance(row.others, str) else row.value
        auroc = with_interval(row.auroc, row.low, row.high)
        rows.append(
            (row.attribute, value, f"{row.images:,}", auroc, *(("", "") if row.attribute == last else fall))
        )
        last = row.attribute
    return replaced("robustness.md", PROBE_HEADER, rows, text)


def attacks(text: str) -> str:
    """The page with its table of attacks."""
    import pandas as pd

    from ral.wording import difference

    rows = []
    table = pd.read_csv(DOCS / "results/robustness_attacks.csv").set_index(["shift", "name", "metric"])
    for attack in table.index.unique("shift"):
        target, _, eps = attack.partition("_")
        cells = []
        for name, metric in (("macro", "ap"), ("head", "ap"), ("medium", "ap"), ("macro", "auroc")):
            row = table.loc[(attack, name, metric)]
            change = difference(row["difference"], row["low"], row["high"])
            cells.append(f"{row['clean']:.3f} to {row['value']:.3f}: {change}")
        rows.append(("each finding alone" if target == "finding" else "all findings at once", eps, *cells))
    return replaced("robustness.md", ATTACK_HEADER, rows, text)


PAGES = {
    "losses.md": losses,
    "evaluation.md": metrics,
    "runbook.md": notifications,
    "robustness.md": robustness,
}


def replaced(page: str, header: Sequence[str], rows: Iterable[Sequence[str]], text: str | None = None) -> str:
    """The text of a page (`text` if it was changed before) with the rows of the table that has this header."""
    text = (DOCS / page).read_text(encoding="utf-8") if text is None else text
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
