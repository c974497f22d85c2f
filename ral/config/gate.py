"""Parameters of the gate, which decides whether a new model may take the champion's place."""

from typing import Annotated

from pydantic import Field, model_validator

from ral.config.base import NullIsEmpty, Section


class GateConfig(Section):
    """When a new model (challenger) replaces the model in use (champion). No stage reads this section."""

    sets: int = Field(default=2, ge=1, le=20)
    """Number of gate sets into which unsealed test patients are divided. Decisions use them in rotation so
    that no set is overused; more sets mean fewer images each and wider intervals."""
    tail_floor: float = Field(default=0.05, ge=0, lt=1)
    """Maximum tolerated loss of tail-tier AP; the lower confidence limit of the difference must not be
    below −tail_floor."""
    subgroup_floor: float = Field(default=0.05, ge=0, lt=1)
    """Maximum tolerated loss of macro AP within a subgroup (attributes of evaluate.audit.by)."""
    calibration_cap: float = Field(default=0.1, gt=0, lt=1)
    """Maximum calibration error (debiased ECE of the challenger's calibrated scores, mean over findings)."""
    seed_deviation: float = Field(default=0.01, ge=0, lt=1)
    """Measured standard deviation of macro AP between trainings that differ only in train.seed; widens the
    interval of the gain. 0 asserts that the seed has no effect."""
    margin: float | None = Field(default=None, gt=0, lt=1)
    """Non-inferiority margin in macro AP. null: only a gain is promoted. Otherwise a challenger not shown
    to be worse than the champion is also promoted if the whole interval of its difference to the
    release `anchor` is at or above −margin."""
    anchor: str | None = Field(default=None, pattern=r"^v\d+\.\d+\.\d+$")
    """Version of the release that `margin` refers to. It stays fixed while champions change, so small
    losses cannot accumulate."""
    robustness: Annotated[dict[str, Annotated[float, Field(ge=0, lt=1)]], NullIsEmpty] = Field(
        default_factory=dict
    )
    """Maximum tolerated loss of macro AP under a shift of the step robustness, by the shift's name (jpeg_50: 0.02);
    the lower confidence limit of the difference to the unchanged images must not be below it. Requires
    robustness.enabled."""
    hold_on_drift: bool = True
    """Whether drift warnings from validate hold the challenger for review."""
    first_auroc: float = Field(default=0.7, ge=0, lt=1)
    """Minimum macro AUROC of a first model (lower confidence limit)."""
    approval: bool = False
    """Whether the nightly flow asks for manual approval before promotion."""
    keep: int = Field(default=5, ge=1)
    """Number of most recent bundles to keep, in addition to the champion's, the previous champion's and
    the anchor's."""

    @model_validator(mode="after")
    def _measured(self) -> "GateConfig":
        if self.margin is not None and self.anchor is None:
            raise ValueError("margin requires an anchor: set it to the release that margin refers to")
        return self


class GateParams(Section):
    """Read only by `python -m ral.release`."""

    gate: GateConfig
