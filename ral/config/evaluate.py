"""Parameters of the evaluation and of the report."""

from itertools import pairwise
from typing import Literal

from pydantic import Field, field_validator, model_validator

from ral.config.base import FileBelow, Section

Rule = Literal["max_f1", "sensitivity", "cost"]
RULES: tuple[Rule, ...] = ("max_f1", "sensitivity", "cost")


class CalibrationConfig(Section):
    """How raw logits become probabilities; the maps are fitted on validation."""

    own: int = Field(ge=10)
    """A finding with fewer positive validation patients keeps the slope that all findings share."""
    isotonic: int = Field(ge=50)
    """Isotonic regression is tried from this many positive validation patients on."""
    bins: int = Field(ge=2, le=100)
    """Bins of equal numbers of images for the calibration error and the reliability curves."""


class ThresholdConfig(Section):
    """From which calibrated score on an image is called positive; chosen on validation."""

    rule: Rule
    """max_f1: highest F1; sensitivity: highest threshold that reaches it; cost: least cost of misses and false alarms."""
    sensitivity: float = Field(gt=0, lt=1)
    """Least validation sensitivity of the rule sensitivity."""
    miss_cost: float = Field(gt=0)
    """Cost of a miss, in false alarms, for the rule cost."""


class AuditConfig(Section):
    """Groups of images whose figures are compared with those of the other images."""

    by: list[Literal["sex", "age", "view", "source"]]
    """Attributes; one that the data does not have is left out, and the output says so. Empty: no audit."""
    age_bands: list[float]
    """First years of the age bands after the youngest, rising."""
    min_positives: int = Field(ge=5)
    """A group with fewer patients with the finding (or without it) has too few for figures of it."""

    @field_validator("by")
    @classmethod
    def _once(cls, by: list[str]) -> list[str]:
        if len(set(by)) < len(by):
            raise ValueError("an attribute is named twice")
        return by

    @field_validator("age_bands")
    @classmethod
    def _rising(cls, bands: list[float]) -> list[float]:
        if not bands or bands[0] <= 0 or any(b <= a for a, b in pairwise(bands)):
            raise ValueError("the ages must be above 0 and rise, such as [18, 40, 60, 80]")
        return bands


class SecondReadingConfig(Section):
    """A second reading of some images: a CSV or Parquet table with a row per image."""

    file: FileBelow
    """The table, below the project's folder."""
    image_id: str = Field(min_length=1)
    """Its column of image ids."""
    columns: dict[str, str] = Field(min_length=1)
    """Finding -> column with 1, 0 or empty."""

    @model_validator(mode="after")
    def _columns_apart(self) -> "SecondReadingConfig":
        if "row" in (self.image_id, *self.columns.values()):
            raise ValueError("the pipeline adds a column `row` of its own: rename it in your table")
        if self.image_id in self.columns.values():
            raise ValueError(f"`{self.image_id}` cannot be the image id and a finding")
        return self


class EvaluateConfig(Section):
    """How the test logits are scored."""

    head: float = Field(gt=0, lt=1)
    """A finding is in the head tier above this training prevalence (CXR-LT 2024: 0.10)."""
    tail: float = Field(gt=0, lt=1)
    """A finding is in the tail tier up to this training prevalence (CXR-LT 2024: 0.01)."""
    min_positives: int = Field(ge=1)
    """A finding with fewer patients with a positive image, or with a negative one, in the scored rows is not estimable."""
    replicates: int = Field(ge=100)
    """Bootstrap resamples of the test patients."""
    confidence: float = Field(gt=0.5, lt=1)
    """Coverage of the intervals."""
    interval: Literal["bca", "percentile"]
    """How intervals are read from the resamples: bca corrects for bias and skew."""
    seed: int = Field(ge=0, lt=2**31)
    """Seed of the resamples and of the folds of calibration."""
    sealed: float = Field(default=0.0, ge=0, lt=1)
    """Share of the test patients that are sealed: their test images are in no figure, comparison or picture until a person opens them (python -m ral.release open-sealed)."""
    calibration: CalibrationConfig
    threshold: ThresholdConfig
    audit: AuditConfig
    second_reading: SecondReadingConfig | None
    """null, or a second reading to compare with: file (CSV or Parquet), image_id (its column of image ids), columns (finding: its column with 1, 0 or empty)."""

    @model_validator(mode="after")
    def _ordered(self) -> "EvaluateConfig":
        if self.tail >= self.head:
            raise ValueError(f"tail ({self.tail}) must be below head ({self.head})")
        return self


class EvaluateParams(Section):
    """Read by the step evaluate."""

    evaluate: EvaluateConfig
