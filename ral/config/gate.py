"""Parameters of the gate, which decides whether a new model may take the champion's place."""

from pydantic import Field, model_validator

from ral.config.base import Section


class GateConfig(Section):
    """When a new model (the challenger) takes the place of the one in use (the champion). No stage reads it."""

    sets: int = Field(default=2, ge=1, le=20)
    """Gate sets that the test patients who are not sealed are shared out to; decisions take them in turn, so that no one set is worn out. More sets, fewer images each and wider intervals."""
    tail_floor: float = Field(default=0.05, ge=0, lt=1)
    """Largest loss of AP in the tail tier that is tolerated: the lower end of its interval must lie above the loss."""
    subgroup_floor: float = Field(default=0.05, ge=0, lt=1)
    """Largest loss of macro AP within a group of images (attributes of evaluate.audit.by) that is tolerated."""
    calibration_cap: float = Field(default=0.1, gt=0, lt=1)
    """Highest calibration error (debiased ECE, mean over the findings) of the challenger's calibrated scores."""
    seed_deviation: float = Field(default=0.01, ge=0, lt=1)
    """Standard deviation of macro AP between trainings that differ in nothing but train.seed, as you measured it; it widens the interval of the gain. 0 claims that the seed does not matter."""
    margin: float | None = Field(default=None, gt=0, lt=1)
    """null: only a gain is promoted. Else a challenger is promoted, too, that loses at most this much macro AP to the release `anchor`, with the whole interval, and is not shown to be worse than the champion."""
    anchor: str | None = Field(default=None, pattern=r"^v\d+\.\d+\.\d+$")
    """Version of the release that `margin` is measured against. It stays the same while champions change, so that small losses cannot add up."""
    hold_on_drift: bool = True
    """Whether drift warnings of the step validate hold a challenger back until a person has looked."""
    first_auroc: float = Field(default=0.7, ge=0, lt=1)
    """Lowest macro AUROC of a first model, by the lower end of its interval."""
    approval: bool = False
    """Whether the nightly flow asks a person before it promotes."""
    keep: int = Field(default=5, ge=1)
    """Newest bundles that are kept, besides those of the champion, of the one before it, and of the anchor."""

    @model_validator(mode="after")
    def _measured(self) -> "GateConfig":
        if self.margin is not None and self.anchor is None:
            raise ValueError("margin needs an anchor: name the release that losses are measured against")
        return self


class GateParams(Section):
    """Read by `python -m ral.release` alone."""

    gate: GateConfig
