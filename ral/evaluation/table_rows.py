"""Rows of the tables of the step evaluate, as it writes them and as report, card and flows read them."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, TypeVar

import pandas as pd
from pydantic import BeforeValidator, TypeAdapter

from ral import wording
from ral.config.evaluate import Rule
from ral.evaluation.results import Interval
from ral.labels import Tier

# Joins a pair of attributes in the column `attribute` of audit.csv.
TIMES = " × "
# End of a column of findings.csv with a metric of the sigmoid of the raw logits.
UNCALIBRATED = "_uncalibrated"

# Cells of a table that was read from a CSV file, where an empty cell is NaN.
Text = Annotated[str, BeforeValidator(lambda value: value if isinstance(value, str) else "")]


def _none_if_nan(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


Number = Annotated[float | None, BeforeValidator(_none_if_nan)]
Count = Annotated[int | None, BeforeValidator(_none_if_nan)]


@dataclass(frozen=True)
class FindingRow:
    """A row of findings.csv: the results for one finding."""

    finding: Text
    tier: Tier
    train_prevalence: float
    """Share of positives among the training images with a known label."""
    train_positives: int
    test_positives: int
    test_rows: int
    """Number of test images with a known label."""
    threshold: Number
    """Raw logit at the max_f1 threshold; None without a threshold."""
    metrics: Mapping[str, Interval]
    """Of `specs.FINDING_METRICS`."""
    uncalibrated: Mapping[str, Number]
    """Of `specs.CALIBRATION_METRICS`, for the sigmoid of the raw logits."""
    calibration: Text
    """Kind of the calibration map; empty if there is none."""
    not_estimable: Text
    """Why a metric has no value; empty if all have one."""

    def value(self, metric: str) -> float | None:
        """A metric without its interval."""
        return self.metrics[metric].value

    @property
    def test_prevalence(self) -> float:
        """Share of positives among the labelled test images, which is the AP of an uninformative score."""
        return self.test_positives / self.test_rows if self.test_rows else math.nan


@dataclass(frozen=True)
class OperatingRow:
    """A row of operating.csv: one finding at the threshold of one rule, on the test images."""

    finding: Text
    rule: Rule
    chosen: bool
    """Whether this is the rule of the parameters."""
    threshold: float
    """Of the calibrated scores."""
    tp: int
    fp: int
    fn: int
    tn: int
    metrics: Mapping[str, Interval]
    """Of `specs.THRESHOLD_METRICS`."""


@dataclass(frozen=True)
class AuditRow:
    """A row of audit.csv: one metric of a finding (or macro) in a group; or why there is none."""

    attribute: Text
    """sex, age, view or source; a pair is joined by `TIMES`."""
    group: Text = ""
    """Empty if the data does not have the attribute."""
    finding: Text = ""
    images: Count = None
    patients: Count = None
    positives: Count = None
    metric: Text = ""
    """Of `specs.GROUP_METRICS`; empty without a metric."""
    value: Number = None
    low: Number = None
    high: Number = None
    others: Number = None
    """The metric of all other images; None if there are too few to compare with."""
    difference: Number = None
    difference_low: Number = None
    difference_high: Number = None
    p: Number = None
    """None if the gap is not tested."""
    p_holm: Number = None
    flagged: Text = ""
    """yes or no; empty if the gap is not tested."""
    note: Text = ""

    @property
    def attributes(self) -> tuple[str, ...]:
        """The one or two attributes of the group."""
        return tuple(self.attribute.split(TIMES))


@dataclass(frozen=True)
class ComparisonRow:
    """A row of a comparison of models (comparison.csv): one metric of a finding, a tier or all findings."""

    metric: Text
    level: Text
    """macro, tier or finding."""
    name: Text
    model: Text
    baseline: Text
    findings: int
    """Number of averaged findings."""
    value: Number = None
    baseline_value: Number = None
    difference: Number = None
    """value − baseline_value."""
    low: Number = None
    high: Number = None
    p: Number = None
    p_holm: Number = None
    note: Text = ""
    """Why there are no numbers."""
    data: Text = ""
    images: Count = None
    """Number of images that both models scored; None if the table does not say."""
    patients: Count = None

    @property
    def difference_text(self) -> str:
        """The difference with its interval."""
        return wording.difference(self.difference, self.low, self.high)


@dataclass(frozen=True)
class ReadingRow:
    """A row of second_reading.csv: a finding that was read twice."""

    finding: Text
    images: int
    """Test images with a known label in both readings."""
    patients: Count = None
    first_positives: Count = None
    second_positives: Count = None
    both_positive: Count = None
    metrics: Mapping[str, Interval] = field(default_factory=dict)
    """The agreement, and the metrics against the first reading (the labels) and the second."""
    note: Text = ""


@dataclass(frozen=True)
class CharacteristicsRow:
    """A row of characteristics.csv: the images of a group in one split."""

    attribute: Text
    group: Text
    split: Text
    images: int
    of: int
    """Number of images that could be in the group."""
    share: Number
    patients: int
    median: Number = None
    """Median and quartiles: of the known ages."""
    q1: Number = None
    q3: Number = None


Row = TypeVar("Row", FindingRow, OperatingRow, AuditRow, ComparisonRow, ReadingRow, CharacteristicsRow)


def read_rows(table: pd.DataFrame, kind: type[Row]) -> list[Row]:
    """The rows of a table of the step evaluate; columns that are no field of `kind` are ignored.

    Raises:
        pydantic.ValidationError: a column is missing, or a cell has the wrong type.
    """
    columns = [str(name) for name in table.columns]
    names = {item.name for item in fields(kind)}
    plain = [name for name in columns if name in names]
    intervals = [name for name in columns if f"{name}_low" in columns and name not in plain]
    raw = [name for name in columns if name.endswith(UNCALIBRATED)]
    content = []
    for record in table.to_dict("records"):
        row: dict[str, object] = {name: record[name] for name in plain}
        if "metrics" in names:
            row["metrics"] = {name: _interval(record, name) for name in intervals}
        if "uncalibrated" in names:
            row["uncalibrated"] = {name.removesuffix(UNCALIBRATED): record[name] for name in raw}
        content.append(row)
    return TypeAdapter(list[kind]).validate_python(content)  # type: ignore[valid-type]


def columns_of(row: Any) -> dict[str, Any]:
    """A row as cells by the names of its columns."""
    cells: dict[str, Any] = {}
    for item in fields(row):
        value = getattr(row, item.name)
        if item.name == "metrics":
            for name, interval in value.items():
                numbers = (interval.value, interval.low, interval.high)
                cells |= dict(zip(with_ends([name]), numbers, strict=True))
        elif item.name == "uncalibrated":
            cells |= {f"{name}{UNCALIBRATED}": number for name, number in value.items()}
        else:
            cells[item.name] = value
    return cells


def to_frame(rows: Sequence[Row], columns: Sequence[str] | None = None) -> pd.DataFrame:
    """A table of rows; `columns` gives its columns, which it also has without rows."""
    return pd.DataFrame([columns_of(row) for row in rows], columns=None if columns is None else list(columns))


def with_ends(metrics: Iterable[str]) -> tuple[str, ...]:
    """The columns of metrics with intervals."""
    return tuple(f"{name}{end}" for name in metrics for end in ("", "_low", "_high"))


def _interval(record: Mapping[Any, Any], name: str) -> Interval:
    return Interval(*(_none_if_nan(record[column]) for column in with_ends([name])))
