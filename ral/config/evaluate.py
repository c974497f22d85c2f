"""Parameters of the evaluation and of the report."""

from pydantic import Field, model_validator

from ral.config.base import Section


class EvaluateConfig(Section):
    """How the test logits are scored."""

    head: float = Field(gt=0, lt=1)
    """A finding is in the head tier above this training prevalence (CXR-LT 2024: 0.10)."""
    tail: float = Field(gt=0, lt=1)
    """A finding is in the tail tier up to this training prevalence (CXR-LT 2024: 0.01)."""
    min_positives: int = Field(ge=1)
    """A finding with fewer positive films or fewer negative films in the scored rows is not estimable."""
    replicates: int = Field(ge=100)
    """Bootstrap resamples of the test patients."""
    confidence: float = Field(gt=0.5, lt=1)
    """Coverage of the intervals."""
    seed: int = Field(ge=0, lt=2**31)
    """Seed of the resamples."""

    @model_validator(mode="after")
    def _ordered(self) -> "EvaluateConfig":
        if self.tail >= self.head:
            raise ValueError(f"tail ({self.tail}) must be below head ({self.head})")
        return self


class ReportConfig(Section):
    """What the report shows."""

    title: str = Field(min_length=1)
    """Title of the report."""


class EvaluateParams(Section):
    """Read by the step evaluate."""

    evaluate: EvaluateConfig
