"""Training losses and their registry."""

import difflib
from collections.abc import Mapping
from typing import Any

from ral.losses.asymmetric import APL, ASL, BCE, CB, CWASL, Focal
from ral.losses.balanced import DB, LDAM, MFM
from ral.losses.base import ClassCounts, Loss, Reduction
from ral.losses.hill import SPLC, Hill
from ral.losses.ral import RAL
from ral.losses.ranking import ZLPR, TwoWay

LOSSES: dict[str, type[Loss]] = {
    "ral": RAL,
    "bce": BCE,
    "focal": Focal,
    "cb": CB,
    "asl": ASL,
    "cw_asl": CWASL,
    "apl": APL,
    "hill": Hill,
    "splc": SPLC,
    "db": DB,
    "ldam": LDAM,
    "two_way": TwoWay,
    "zlpr": ZLPR,
    "mfm": MFM,
}


def build_loss(
    name: str,
    options: Mapping[str, Any] | None = None,
    class_counts: ClassCounts | None = None,
    reduction: Reduction = "mean",
) -> Loss:
    """The loss called `name`; called with (logits, targets).

    Args:
        name: a key of `LOSSES`.
        options: options by name; the defaults are the paper's.
        class_counts: training images per finding (`ClassCounts.of` class_counts.json), for losses that need
            them.
        reduction: "mean", "sum" or "none".

    Raises:
        ValueError: unknown loss or option (the message lists the valid ones), or class counts are missing.
    """
    if name not in LOSSES:
        matches = difflib.get_close_matches(name, LOSSES, n=1)
        hint = f" Did you mean `{matches[0]}`?" if matches else ""
        raise ValueError(f"unknown loss `{name}`.{hint} Losses: {', '.join(LOSSES)}.")
    return LOSSES[name](class_counts, reduction, **(options or {}))


__all__ = ["LOSSES", "RAL", "ClassCounts", "Loss", "build_loss"]
