"""Names of the arms for people, and the groups that share a table of RESULTS.md.

To add a table, add a `Group` above the last one and run `python -m benchmarks.study.results`.
"""

from collections.abc import Iterable
from dataclasses import dataclass

BCE, REFERENCE, RAL, ASL, COMP_SUM = "bce", "reference", "ral", "asl", "comp_sum"
# Every arm is compared with these.
BASELINES = (BCE, REFERENCE, RAL)
# Arms of the thinning experiment.
THINNED = (BCE, ASL, RAL)
# An extra is the arm that it changes, this sign, and the change: `ral+ema`.
CHANGE = "+"

LABELS = {
    "reference": "Reference recipe (RAL authors)",
    "bce": "BCE",
    "balanced_bce": "Balanced BCE",
    "asl": "ASL",
    "cw_asl": "Class-weighted ASL",
    "ral": "RAL",
    "focal": "Focal",
    "cb": "Class-balanced (CB)",
    "apl": "APL",
    "hill": "Hill",
    "splc": "SPLC",
    "db": "Distribution-balanced (DB)",
    "ldam": "LDAM-DRW",
    "zlpr": "ZLPR",
    "two_way": "Two-way",
    "mfm": "MFM",
    "ral_paper": "RAL (paper)",
}

# Arms of the last group.
FROM_OTHER_FIELDS = {
    "z_loss": "Z-loss",
    "comp_sum": "Comp-sum",
    "hybrid": "Hybrid",
    "rlc": "RLC",
    "mfm_cooccurrence": "MFM with co-occurrence",
    "dice": "Dice",
    "anyloss": "AnyLoss",
    "bce_adjusted": "BCE + logit adjustment",
    "bce_smoothed": "BCE + label smoothing",
    "bce_mixup": "BCE + mixup",
}


@dataclass(frozen=True)
class Group:
    """Arms that share their tables and one Holm correction."""

    name: str
    """In differences.csv and in the names of the plots."""
    title: str
    arms: tuple[str, ...]
    """In the order of the table; empty: all arms that no other group has."""


GROUPS = (
    Group("losses", "Losses and recipes", tuple(name for name in LABELS if name != "splc")),
    Group("other_fields", "Losses from other fields", ()),
)


def label(arm: str) -> str:
    """Name of an arm for people; that of an extra names the change."""
    base, sign, change = arm.partition(CHANGE)
    return f"{(LABELS | FROM_OTHER_FIELDS).get(base, base)}{' + ' if sign else ''}{change.replace('_', ' ')}"


def base_of(extra: str) -> str:
    """The arm that an extra changes."""
    return extra.partition(CHANGE)[0]


def members(group: Group, arms: Iterable[str]) -> list[str]:
    """The arms of a group among those that ran."""
    arms = list(arms)
    if group.arms:
        return [name for name in group.arms if name in arms]
    others = {name for other in GROUPS for name in other.arms}
    return [name for name in arms if name not in others]
