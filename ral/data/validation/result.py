"""What the step validate finds: checks with their results, the profile of the table, and the hashes of its files.

`ValidationResult` is the content of validation.json, and `Profile` that of baseline/profile.json.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from ral.data.file_hash import FileHash
from ral.records import Record

Severity = Literal["error", "warning"]

# What a check is about: the rows of the label table and their images, or drift from the accepted profile.
CheckKind = Literal["table", "drift"]


class Profile(Record):
    """Shares of views, sexes, ages and label values in a table, for comparison with later deliveries."""

    rows: int
    patients: int | None = None
    """Null in profiles that are older than this number."""
    columns: Mapping[str, Mapping[str, float]]
    """Column -> value -> share of the rows."""
    labels: Mapping[str, Mapping[str, float]]
    """Finding -> positive, negative or unknown -> share of the rows."""


class Sample(Record):
    """A row that failed a check."""

    row: int
    """Line of the table."""
    image_id: str
    value: str | None
    """The cell, or a description; null if it is empty or hidden by pseudonyms."""


class Check(Record):
    """Result of one check."""

    kind: CheckKind
    check: str
    """Name, as a statement that holds for good data."""
    column: str
    """What people know the checked cells by."""
    severity: Severity
    """error stops the run; warning is reported."""
    passed: bool
    unexpected: int
    """Number of rows that failed."""
    samples: Sequence[Sample]
    """The first rows that failed."""
    observed: str
    """What was measured, if a list of rows does not say it; "" otherwise."""
    remedy: str

    @property
    def stops(self) -> bool:
        """Whether the data is rejected because of this check."""
        return self.severity == "error" and not self.passed

    @property
    def advice(self) -> str:
        """What was observed, and the remedy."""
        return ". ".join(filter(None, (self.observed, self.remedy)))


class TableSummary(Record):
    """Counts of the label table and its images."""

    phantom: bool
    rows: int
    patients: int
    images: int
    rows_without_image: int
    images_without_row: int
    profile: Profile


class ValidationResult(TableSummary):
    """Result of validating a data folder."""

    if_damaged: ClassVar[str] = "Run `dvc repro validate`."

    passed: bool
    checks: Sequence[Check]
    files: Mapping[str, FileHash]
    """Tables and archives, by path relative to the data folder."""
