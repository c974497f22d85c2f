"""Label vocabularies, and the head / medium / tail tier of a finding by its training count."""

from typing import Literal

# Spelling and order of torchxrayvision's `default_pathologies` (its first fourteen are NIH ChestX-ray14's).
NIH_FINDINGS = (
    "Atelectasis",
    "Consolidation",
    "Infiltration",
    "Pneumothorax",
    "Edema",
    "Emphysema",
    "Fibrosis",
    "Effusion",
    "Pneumonia",
    "Pleural_Thickening",
    "Cardiomegaly",
    "Nodule",
    "Mass",
    "Hernia",
)

# Not a finding: it says that a film carries none, so it never stands beside one.
NO_FINDING = "No Finding"

# Starts the image id of every phantom film, so that no table made from them can lose the fact.
PHANTOM_PREFIX = "phantom"

Tier = Literal["head", "medium", "tail"]
TIERS: tuple[Tier, ...] = ("head", "medium", "tail")


def tier(positives: int, films: int, head: float, tail: float) -> Tier:
    """Tier of a finding with `positives` among `films` training films whose label is known.

    Head is a prevalence above `head`, tail one of at most `tail`, medium lies between
    (CXR-LT 2024 cuts at 10 % and 1 %).
    """
    prevalence = positives / films
    if prevalence > head:
        return "head"
    return "tail" if prevalence <= tail else "medium"
