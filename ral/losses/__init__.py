"""Training losses and their registry."""

from collections.abc import Mapping
from typing import Any

from ral.losses.asymmetric import APL, ASL, BCE, CB, CWASL, Focal
from ral.losses.balanced import DB, LDAM, MFM, RLC
from ral.losses.base import ClassCounts, Loss, Reduction
from ral.losses.comp_sum import CompSum
from ral.losses.custom import build_custom
from ral.losses.hill import SPLC, Hill
from ral.losses.hybrid import Hybrid
from ral.losses.ral import RAL
from ral.losses.ranking import ZLPR, TwoWay
from ral.losses.sets import AnyLoss, Dice
from ral.losses.zscore import ZLoss
from ral.suggest import did_you_mean
from ral.user_code import CUSTOM

LOSSES: dict[str, type[Loss[Any]]] = {
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
    "z_loss": ZLoss,
    "comp_sum": CompSum,
    "hybrid": Hybrid,
    "mfm": MFM,
    "rlc": RLC,
    "dice": Dice,
    "anyloss": AnyLoss,
}


def build_loss(
    name: str,
    options: Mapping[str, Any] | None = None,
    class_counts: ClassCounts | None = None,
    reduction: Reduction = "mean",
) -> Loss[Any]:
    """The loss called `name`; called with (logits, targets).

    Args:
        name: a key of `LOSSES`, or "custom" for the user's own class.
        options: options by name; the defaults are the paper's. custom: class_path, and the options of the class.
        class_counts: training images per finding (`ClassCounts.of` class_counts.json), for losses that need
            them.
        reduction: "mean", "sum" or "none".

    Raises:
        ValueError: unknown loss or option (the message lists the valid ones), or class counts are missing.
        UserError: see `build_custom`.
    """
    if name == CUSTOM:
        own = options or {}
        return build_custom(own.get("class_path"), own.get("options") or {}, class_counts, reduction)
    if name not in LOSSES:
        raise ValueError(f"unknown loss `{name}`.{did_you_mean(name, LOSSES)} Losses: {', '.join(LOSSES)}.")
    return LOSSES[name](class_counts, reduction, **(options or {}))


__all__ = ["LOSSES", "RAL", "ClassCounts", "Loss", "build_loss"]
