"""robustness.json, as the step robustness writes it and as report, card and gate read it.

Each part of the audit is a field that is absent if the part was not requested.
"""

from typing import ClassVar, Literal

from pydantic import Field

from ral.evaluation.results import Level
from ral.labels import Data, Tier
from ral.records import Record

# Mean over the findings, except for calls: their sum.
Metric = Literal["ap", "auroc", "brier", "ece", "calls"]
METRICS: tuple[Metric, ...] = ("ap", "auroc", "brier", "ece", "calls")


class ShiftInfo(Record):
    """A shift: the change of the images."""

    name: str
    """Kind and strength, such as jpeg_50; a kind without strengths is its own name."""
    kind: str
    strength: float | None
    """None for a kind without strengths."""
    label: str
    """For people."""
    not_available: str | None = None
    """Why the images could not be changed so; there are then no rows."""


class ShiftRow(Record):
    """One metric of a finding, tier or all findings under one shift, compared with the unchanged images."""

    shift: str
    level: Level
    name: str
    """Of the finding or tier; macro."""
    metric: Metric
    findings: int
    """Number of findings in the mean or sum; 0: not estimable."""
    clean: float | None = None
    value: float | None = None
    difference: float | None = None
    """value − clean, with the interval of the paired bootstrap over patients."""
    low: float | None = None
    high: float | None = None
    p: float | None = None
    p_holm: float | None = None
    """Holm-corrected over the shifts (and names) of the same metric and level."""


class Shifts(Record):
    """The results on changed images."""

    shifts: tuple[ShiftInfo, ...]
    """In the order in which they are shown."""
    rows: tuple[ShiftRow, ...]

    def row(self, shift: str, level: Level, name: str, metric: Metric) -> ShiftRow | None:
        """The row of a shift; None if there is none."""
        wanted = (shift, level, name, metric)
        return next(
            (row for row in self.rows if (row.shift, row.level, row.name, row.metric) == wanted), None
        )


class FlipRow(Record):
    """How much the output for a finding changes if left and right are exchanged; means over findings above that."""

    level: Level
    name: str
    """Of the finding or tier; macro."""
    logit: float
    """Mean over the images of |change of the logit|."""
    probability: float | None = None
    """Mean over the images of |change of the calibrated score|; None without a calibration map, as what follows."""
    changed_calls: float | None = None
    """Share of the images whose call changes, with its interval."""
    low: float | None = None
    high: float | None = None
    rank_correlation: float | None = None
    """Spearman's, of the logits before and after; None if all logits are equal."""


class Flip(Record):
    """The flip audit."""

    rows: tuple[FlipRow, ...]
    changed_images: float | None = None
    """Share of the images with at least one changed call, with its interval; None without calls."""
    low: float | None = None
    high: float | None = None

    def row(self, level: Level, name: str) -> FlipRow:
        """The row of a finding, a tier or macro."""
        return next(row for row in self.rows if (row.level, row.name) == (level, name))


class AuditedFinding(Record):
    """A finding of the model under audit."""

    name: str
    tier: Tier
    not_estimable: str | None = None
    """Why it is in no mean."""


# What an attack is on: each finding by itself, or the loss of all findings at once.
Target = Literal["finding", "all"]


class AttackInfo(Record):
    """An attack."""

    name: str
    """Target and strength, such as finding_1."""
    target: Target
    eps: float
    """Largest change of a pixel, in gray levels."""


class GapRow(Record):
    """AP of the head minus AP of the tail, on the unchanged images and under an attack."""

    attack: str
    clean: float | None
    clean_low: float | None
    clean_high: float | None
    value: float | None
    value_low: float | None
    value_high: float | None
    difference: float | None
    """value − clean, with the interval of the paired bootstrap over patients."""
    low: float | None
    high: float | None


class Attacks(Record):
    """The results under attack, on a sample of the test images."""

    attacks: tuple[AttackInfo, ...]
    steps: int
    images: int
    patients: int
    not_estimable: dict[str, str]
    """Finding -> why it is in no mean of this sample."""
    rows: tuple[ShiftRow, ...]
    """AP and AUROC; `shift` is the name of the attack. Nothing is tested."""
    gaps: tuple[GapRow, ...]
    """Empty if the head or the tail has no estimable finding."""

    def row(self, attack: str, level: Level, name: str, metric: Metric) -> ShiftRow:
        """The row of an attack."""
        wanted = (attack, level, name, metric)
        return next(row for row in self.rows if (row.shift, row.level, row.name, row.metric) == wanted)


class ProbeRow(Record):
    """How well a linear probe on the features tells one value of an attribute from the others."""

    attribute: str
    value: str
    others: str
    """The other value, if there is one only; else empty."""
    images: int
    """With this value."""
    patients: int
    """With this value."""
    share: float
    """Of the images with a known value."""
    auroc: float | None = None
    low: float | None = None
    high: float | None = None
    note: str = ""
    """Why there is no AUROC."""


class WithinRow(Record):
    """AUROC of a finding among all images with a known value of an attribute, and among pairs with the same value."""

    attribute: str
    finding: str
    """macro: the mean over the findings."""
    auroc: float | None
    within: float | None
    difference: float | None
    """within − auroc, with the interval of the paired bootstrap over patients."""
    low: float | None
    high: float | None
    p: float | None
    p_holm: float | None = None
    """Holm-corrected over attributes and findings; of the means over attributes only."""


class StratumRow(Record):
    """AP of a finding among the images with one value of an attribute, and among all others."""

    attribute: str
    value: str
    finding: str
    """macro: the mean over the findings with an AP on both sides."""
    images: int | None
    positives: int | None
    ap: float | None
    low: float | None
    high: float | None
    others: float | None
    difference: float | None
    difference_low: float | None
    difference_high: float | None
    note: str


class Probes(Record):
    """The shortcut probes."""

    folds: int
    not_available: str | None = None
    """Why the network has no features; there are then no rows."""
    left_out: dict[str, str] = Field(default_factory=dict)
    """Attribute -> why it is not in the rows."""
    probes: tuple[ProbeRow, ...] = ()
    within: tuple[WithinRow, ...] = ()
    strata: tuple[StratumRow, ...] = ()


class Audited(Record):
    """The images and findings of the audit."""

    images: int
    patients: int
    findings: tuple[AuditedFinding, ...]
    """The most frequent in training first."""
    replicates: int
    confidence: float


class Robustness(Record):
    """Content of robustness.json."""

    if_damaged: ClassVar[str] = "Run `dvc repro robustness`."

    notice: str
    data: Data
    audited: Audited | None = None
    """None: the step is off (robustness.enabled)."""
    shifts: Shifts | None = None
    flip: Flip | None = None
    attacks: Attacks | None = None
    probes: Probes | None = None

    @property
    def phantom(self) -> bool:
        """Whether the images are phantoms."""
        return self.data == "phantom"
