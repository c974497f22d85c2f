"""The gate's decision on a model, as `judge` writes it and `register`, the flows and the ledger read it."""

from typing import Literal

from pydantic import Field, field_serializer

from ral.config.gate import GateConfig
from ral.labels import common_findings
from ral.records import Record

Outcome = Literal["PROMOTE", "HOLD", "REJECT"]
RuleResult = Literal["passes", "holds", "rejects", "listed"]


class Rule(Record):
    """What a rule of the gate, or the person who approves, says about the model."""

    rule: str
    """Name of the rule."""
    result: RuleResult
    """`listed` is informative only."""
    sentence: str
    estimate: float | None = None
    low: float | None = None
    high: float | None = None
    floor: float | None = None
    """The limit that the rule compares with."""


class GateSet(Record):
    """The test images that a decision is made on."""

    images: int
    left_out_patients: int
    """Patients excluded because the champion was trained or validated on them."""
    number: int
    """From 1 to `sets`."""
    patients: int
    sealed_patients: int
    sets: int
    """Number of gate sets, which take turns."""
    turn: int
    """Number of earlier decisions."""


class ComparedFindings(Record):
    """Findings of a challenger and of a reference model; nothing is given if there is no comparison."""

    scored: list[str] = Field(default_factory=list)
    only_challenger: list[str] = Field(default_factory=list)
    only_champion: list[str] = Field(default_factory=list)

    @classmethod
    def of(cls, challenger: list[str], reference: list[str]) -> "ComparedFindings":
        """The findings of both, and of either alone, in their order."""
        return cls(
            scored=common_findings(challenger, reference),
            only_challenger=[name for name in challenger if name not in reference],
            only_champion=[name for name in reference if name not in challenger],
        )


class GateDecision(Record):
    """The gate's decision on the model of a run, with every rule that led to it."""

    run_id: str
    """There is one decision per run."""
    decision: Outcome
    sentence: str
    """The decision and its reasons in one line."""
    notice: str
    """What must be shown with it: that the data is phantom data, or that this is research software."""
    champion: str | None
    """Version of the release that the model was compared with; None for the first model."""
    anchor: str | None
    """Version of the fixed release of the non-inferiority margin."""
    set: GateSet
    findings: ComparedFindings
    rules: list[Rule]
    confidence: float
    replicates: int
    gate: GateConfig
    """The limits."""

    @field_serializer("gate")
    def _with_defaults(self, gate: GateConfig) -> dict[str, object]:
        """All limits, whether params.yaml lists them or not."""
        return gate.model_dump(mode="json")
