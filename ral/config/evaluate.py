"""Parameters of the evaluation and of the report."""

from itertools import pairwise
from typing import Literal

from pydantic import Field, field_validator, model_validator

from ral.config.base import FileBelow, Section

Rule = Literal["max_f1", "sensitivity", "cost", "prevalence"]
RULES: tuple[Rule, ...] = ("max_f1", "sensitivity", "cost", "prevalence")


class CalibrationConfig(Section):
    """How raw logits become probabilities. Calibration is fitted on validation."""

    own: int = Field(ge=10)
    """Minimum number of positive validation patients for a finding to get its own slope; below it the
    slope shared by all findings is used."""
    isotonic: int = Field(ge=50)
    """Minimum number of positive validation patients for isotonic regression to be considered."""
    bins: int = Field(ge=2, le=100)
    """Number of equal-count bins for the calibration error and the reliability curves."""


class ThresholdConfig(Section):
    """How the operating threshold on the calibrated score is chosen, on validation."""

    rule: Rule
    """max_f1: highest F1. sensitivity: highest threshold that reaches `sensitivity`. cost: lowest cost of
    false negatives and false positives. prevalence: the prevalence of the finding; for calibrated scores,
    the highest sum of sensitivity and specificity."""
    sensitivity: float = Field(gt=0, lt=1)
    """Minimum validation sensitivity for the rule sensitivity."""
    miss_cost: float = Field(gt=0)
    """Cost of a false negative relative to a false positive, for the rule cost."""


class AuditConfig(Section):
    """Subgroups of images whose metrics are compared with those of all other images."""

    by: list[Literal["sex", "age", "view", "source"]]
    """Subgroup attributes; those missing from the data are skipped and reported. Empty: no audit."""
    age_bands: list[float]
    """Lower bounds of the age bands after the youngest band, in years, increasing."""
    min_positives: int = Field(ge=5)
    """Minimum number of patients with a finding, and without it, for a subgroup's metrics to be estimated."""

    @field_validator("by")
    @classmethod
    def _once(cls, by: list[str]) -> list[str]:
        if len(set(by)) < len(by):
            raise ValueError("an attribute is listed twice")
        return by

    @field_validator("age_bands")
    @classmethod
    def _rising(cls, bands: list[float]) -> list[float]:
        if not bands or bands[0] <= 0 or any(b <= a for a, b in pairwise(bands)):
            raise ValueError("ages must be above 0 and increasing, such as [18, 40, 60, 80]")
        return bands


class SecondReadingConfig(Section):
    """A second reading of some images: a CSV or Parquet table with one row per image."""

    file: FileBelow
    """Table file, relative to the project folder."""
    image_id: str = Field(min_length=1)
    """Column with the image id."""
    columns: dict[str, str] = Field(min_length=1)
    """Mapping from finding to column (1, 0 or empty)."""

    @model_validator(mode="after")
    def _columns_apart(self) -> "SecondReadingConfig":
        if "row" in (self.image_id, *self.columns.values()):
            raise ValueError("the pipeline adds its own column `row`: rename the column of your table")
        if self.image_id in self.columns.values():
            raise ValueError(f"`{self.image_id}` cannot be both the image id and a finding")
        return self


class EvaluateConfig(Section):
    """How the test logits are evaluated."""

    head: float = Field(gt=0, lt=1)
    """Training prevalence above which a finding is in the head tier (CXR-LT 2024: 0.10)."""
    tail: float = Field(gt=0, lt=1)
    """Training prevalence up to which a finding is in the tail tier (CXR-LT 2024: 0.01)."""
    min_positives: int = Field(ge=1)
    """Minimum number of patients with positive and with negative images for a finding to be estimable."""
    replicates: int = Field(ge=100)
    """Number of bootstrap replicates (resampled test patients)."""
    confidence: float = Field(gt=0.5, lt=1)
    """Confidence level of the intervals."""
    interval: Literal["bca", "percentile"]
    """Bootstrap interval: bca (bias-corrected and accelerated) or percentile."""
    seed: int = Field(ge=0, lt=2**31)
    """Random seed of the bootstrap and of the calibration folds."""
    sealed: float = Field(default=0.0, ge=0, lt=1)
    """Fraction of test patients that are sealed: excluded from all metrics, comparisons and galleries
    until someone opens them (python -m ral.release open-sealed)."""
    calibration: CalibrationConfig
    threshold: ThresholdConfig
    audit: AuditConfig
    second_reading: SecondReadingConfig | None
    """Second reading to compare with, or null: file (CSV or Parquet), image_id (image id column), columns
    (mapping from finding to a column with 1, 0 or empty)."""

    @model_validator(mode="after")
    def _ordered(self) -> "EvaluateConfig":
        if self.tail >= self.head:
            raise ValueError(f"tail ({self.tail}) must be below head ({self.head})")
        return self


class EvaluateParams(Section):
    """Read by the step evaluate."""

    evaluate: EvaluateConfig
