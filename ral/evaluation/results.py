"""Estimates with intervals, and metrics.json: written by the step evaluate, read by report, card, flows and release."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import ConfigDict, Field

from ral import wording
from ral.labels import Data
from ral.records import Record

# Decimals of all written numbers except thresholds; logits of different machines differ beyond that.
DECIMALS = 6

# Of a mean: over all findings, over those of a tier, or a single one.
Level = Literal["macro", "tier", "finding"]


def rounded_number(value: float | None) -> float | None:
    """A number as it is written, with `DECIMALS` and no -0.0; None if there is none, or it is not finite."""
    return None if value is None or not math.isfinite(value) else round(float(value), DECIMALS) + 0.0


@dataclass(frozen=True)
class Interval:
    """A metric and its confidence interval."""

    value: float | None
    """None if the metric is not estimable; low and high are then None too."""
    low: float | None
    """Also None if fewer than five patients contribute, and for the debiased calibration error."""
    high: float | None

    def text(self, decimals: int = 3) -> str:
        """The metric with its interval, or that it is not estimable."""
        return wording.with_interval(self.value, self.low, self.high, decimals)


NO_INTERVAL = Interval(None, None, None)


@dataclass(frozen=True)
class Estimate(Interval):
    """A metric of one finding, or its mean over several findings, with the bootstrap interval."""

    findings: int
    """Number of averaged findings: 1 for a single finding, 0 if it is not estimable."""


NOTHING = Estimate(None, None, None, 0)


class Mean(Record):
    """Means of the metrics over several findings, by the name of the metric."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Estimate] = Field(init=False)
    findings: int
    """Number of findings with an AUROC and an AP."""

    def __getitem__(self, metric: str) -> Estimate:
        return self.__pydantic_extra__[metric]


class ScoredImages(Record):
    """The test images."""

    rows: int
    patients: int
    sealed_patients: int = 0
    """Sealed test patients, who are in no metric; not written if there are none."""


class Metrics(Record):
    """Content of metrics.json."""

    if_damaged: ClassVar[str] = "Run `dvc repro evaluate`."

    data: Data
    test: ScoredImages
    macro: Mean
    micro: Mean
    tiers: dict[str, Mean]
    cxr_lt: dict[str, Estimate]
    """The official metrics of the CXR-LT challenges."""
    not_estimable: dict[str, str]
    """Finding -> why a metric of it has no value."""
    confidence: float
    interval: str
    """Type of bootstrap interval: bca or percentile."""
    replicates: int

    @property
    def phantom(self) -> bool:
        """Whether a test image is a phantom."""
        return self.data == "phantom"

    @property
    def percent(self) -> str:
        """Coverage of the intervals, as text."""
        return f"{100 * self.confidence:g} %"
