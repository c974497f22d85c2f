"""Parameters of the data: phantom images, the source, the split, the pixels."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from ral.config.base import FileBelow, NullIsEmpty, Section
from ral.labels import (
    ADDED_COLUMNS,
    LABEL_SETS,
    RESERVED_NAMES,
    SourceName,
    is_spreadsheet_safe,
    unknown_finding,
)

View = Literal["PA", "AP", "FRONTAL", "LATERAL", "OTHER"]


# What `python -m ral.data.sources.table` writes for a required key whose question only a person can answer.
UNANSWERED = "?"


def _not_added(name: str) -> str:
    if name == UNANSWERED:
        raise ValueError("the question above this key is not answered: write the name of the column")
    if name in ADDED_COLUMNS:
        raise ValueError(f"the pipeline adds its own column `{name}`: rename the column of your table")
    return name


# A column of a user's table.
Column = Annotated[str, Field(min_length=1), AfterValidator(_not_added)]


class PhantomConfig(Section):
    """The embedded data set: synthetic phantom images, used when no real data is given."""

    images: int = Field(ge=200)
    """Number of images to generate; each patient has 1 to 12."""
    size: int = Field(ge=48)
    """Image height and width in pixels."""
    floor: float = Field(gt=0, lt=0.2)
    """Minimum prevalence of a finding; rarer NIH findings are raised to it so that each can be scored."""
    seed: int = Field(ge=0, lt=2**31)
    """Random seed; the same seed gives identical bytes."""


class TableConfig(Section):
    """Column mapping of your own CSV or Parquet table (`source: table`); null: no such column."""

    file: FileBelow = "table.csv"
    """Table file, relative to `data.root`: .csv, .csv.gz or .parquet (a file, or a folder of part files)."""
    separator: str = Field(default=",", min_length=1, max_length=1)
    """CSV column separator."""
    image_id: Column = "image_id"
    """Column with a unique id per image."""
    patient_id: Column = "patient_id"
    """Column with the patient id; all images of a patient go to the same split."""
    study_id: Column | None = None
    """Column with the study id; null: each image is its own study."""
    follow_up: Column | None = None
    """Column with the chronological number of a patient's study; null: the order is not checked."""
    path: Column | None = None
    """Column with the image path relative to `data.root`; null: images are looked up by image id in
    images*/ or in archives images* (tar.gz, tgz, tar, zip)."""
    view: Column | None = None
    """Column with the view; null: every image is FRONTAL."""
    views: Annotated[dict[str, View], NullIsEmpty] = Field(default_factory=dict)
    """Mapping from values of the view column to PA, AP, FRONTAL, LATERAL or OTHER, where they differ."""
    sex: Column | None = None
    """Column with the patient's sex."""
    sexes: Annotated[dict[str, Literal["M", "F"] | None], NullIsEmpty] = Field(default_factory=dict)
    """Mapping from values of the sex column to M or F, where they differ; null: unknown."""
    age_years: Column | None = None
    """Column with the age in whole years."""
    split: Column | None = None
    """Column with the official split (train, val, test); null: no official split."""
    photometric: Column | None = None
    """Column with MONOCHROME1 (high values are dark) or MONOCHROME2 for PNG and JPEG images (see
    `preprocess.monochrome1`); null: all are MONOCHROME2. DICOM files carry this themselves."""
    labels: Column | None = None
    """Column with all findings of an image, separated by `label_separator`; null: a column per finding."""
    label_separator: str = Field(default="|", min_length=1)
    """Separator between names in the column `labels`."""
    findings: Annotated[dict[str, Column], NullIsEmpty] = Field(default_factory=dict)
    """Finding -> its column (1, 0, -1 uncertain, empty unknown), or its name in the column `labels`."""
    no_finding: Column | None = None
    """Column for No Finding, or its name in the column `labels`."""

    @field_validator("findings")
    @classmethod
    def _not_reserved(cls, findings: dict[str, str]) -> dict[str, str]:
        duplicates = [name for name in findings.values() if list(findings.values()).count(name) > 1]
        if duplicates:
            raise ValueError(f"`{duplicates[0]}` is used for two findings: each needs its own column or name")
        for name in findings:
            if not name.strip():
                raise ValueError("a finding has an empty name")
            if name.lower() in RESERVED_NAMES:
                raise ValueError(
                    f"`{name}` is the name of a column or group in the pipeline's own tables: rename the finding"
                )
            if not is_spreadsheet_safe(name):
                raise ValueError(
                    f"`{name}` would be a formula or several cells in a spreadsheet: rename the finding"
                )
        return findings


class DriftConfig(Section):
    """Limits for drift of a delivery from the accepted profile (baseline/profile.json); without a profile
    nothing is compared.

    The population stability index (PSI) of a column or label is the sum of (now − then) · ln(now / then) over the
    shares of its values; 0.1 and 0.25 are the usual limits.
    """

    warn: float = Field(default=0.1, gt=0)
    """PSI of a column or label above which validation warns."""
    fail: float = Field(default=0.25, gt=0)
    """PSI of a column or label above which validation stops the run."""
    prevalence: float = Field(default=2.0, gt=1)
    """Validation warns if the prevalence of a finding changes by more than this factor, up or down, and
    the change is statistically significant."""
    rows: float = Field(default=0.9, gt=0, le=1)
    """Validation warns if there are fewer rows than this fraction of the accepted number."""

    @model_validator(mode="after")
    def _ordered(self) -> "DriftConfig":
        if self.fail < self.warn:
            raise ValueError(f"fail ({self.fail}) must not be below warn ({self.warn})")
        return self


# Keys of the section data whose paths decide nothing: what they hold does, by the manifest. DVC does not track them,
# and no output has them.
UNTRACKED = ("root", "exclude_patients", "exclude_salt")


class BoxesConfig(Section):
    """Boxes of findings, with which heat maps are evaluated."""

    files: list[FileBelow] = Field(min_length=1)
    """Tables of boxes, relative to `data.root`: NIH's BBox_List_2017.csv, or annotations of VinDr-CXR."""
    side: int | None = Field(default=None, ge=16)
    """Side of the square images that the coordinates refer to, if the image files are smaller than published (NIH:
    1024); null: the size of each image file."""


class DataConfig(Section):
    """The data set, its labels, and which images are used."""

    source: SourceName
    """Layout of the folder `root`, as published (docs/sources.md); table: your own CSV or Parquet table."""
    root: str = Field(min_length=1)
    """Data folder: tables, official split lists and images (archived or unpacked). DVC tracks its content,
    not its path; RAL_DATA_ROOT overrides it."""
    labels: str | None = None
    """Label set of the source. mimic: chexpert, cxr_lt_2023, cxr_lt_2024_task1, cxr_lt_2024_task2 or
    cxr_lt_2024_all; padchest: padchest or cxr_lt_2026. null: the first one listed."""
    missing_images: Literal["fail", "drop"]
    """Table rows without an image: fail (error), or drop (exclude and count them)."""
    views: list[View] = Field(min_length=1)
    """Views to include; others are excluded and counted. FRONTAL (view not specified further) is included
    if PA and AP both are."""
    findings: list[str] | None = Field(default=None, min_length=1)
    """Findings to train on, in this order; null: all of the label set."""
    uncertain: Literal["ignore", "positive", "negative", "keep"] = "ignore"
    """Meaning of an uncertain label (-1): unknown, 1 or 0 (CheXpert's U-Ignore, U-Ones, U-Zeros). keep: unknown to
    losses and metrics, but recorded for the second phase presto."""
    unmentioned: Literal["unknown", "negative"] = "unknown"
    """Meaning of an empty label on an image that is not labelled No Finding."""
    readers: Literal["majority", "any"] = "majority"
    """vindr: a finding is positive if more than half of an image's readers report it, or if any does."""
    pseudonymise: str | None = Field(default=None, min_length=1)
    """Salt file: ids in the prepared data become keyed hashes and paths are dropped; null: ids stay."""
    exclude_patients: str | None = Field(default=None, min_length=1)
    """File with the patients who must be in no output, one id per line (docs/forgetting.md); null: none.
    DVC tracks its content, not its path."""
    exclude_salt: str | None = Field(default=None, min_length=1)
    """Salt file: the lines of `exclude_patients` are keyed hashes of the ids; null: they are the ids."""
    boxes: BoxesConfig | None = None
    """Boxes of findings, with which heat maps are evaluated (docs/localisation.md); null: none."""
    table: TableConfig = TableConfig()
    drift: DriftConfig = DriftConfig()

    @field_validator("findings", "views")
    @classmethod
    def _once(cls, names: list[str] | None) -> list[str] | None:
        if names and len(set(names)) < len(names):
            raise ValueError("a name is listed twice: list each once")
        return names

    @field_validator("labels")
    @classmethod
    def _label_set(cls, name: str | None, info: object) -> str | None:
        source = getattr(info, "data", {}).get("source")
        sets = LABEL_SETS.get(source or "", {})
        if name is not None and source and name not in sets:
            raise ValueError(
                f"the source {source} has no label set `{name}`. Allowed: {', '.join(sets) or 'null'}"
            )
        return name

    @field_validator("findings")
    @classmethod
    def _known(cls, names: list[str] | None, info: object) -> list[str] | None:
        data = getattr(info, "data", {})
        sets = LABEL_SETS.get(data.get("source", ""), {})
        allowed = sets.get(data.get("labels") or next(iter(sets), ""))
        wrong = unknown_finding(names or [], allowed) if allowed else None
        if wrong:
            raise ValueError(wrong)
        return names

    @model_validator(mode="after")
    def _table_has_findings(self) -> "DataConfig":
        if self.source == "table":
            if not self.table.findings:
                raise ValueError(
                    "table.findings is empty: map each finding to its column, or to its name in the column `labels` "
                    "(`python -m ral.data.sources.table FILE` reads a table and writes the section)"
                )
            wrong = unknown_finding(self.findings or [], self.table.findings)
            if wrong:
                raise ValueError(f"findings: {wrong}")
        return self


class ThinConfig(Section):
    """Fewer positive training images, for experiments on imbalance; validation and test stay as they are."""

    ratio: float | None = Field(default=None, ge=1)
    """Positives of the most frequent finding for each of the rarest one: whole patients leave training until the
    positives of the findings fall geometrically; null or 1: no patient leaves."""


class SplitConfig(Section):
    """Assignment of patients to train, val and test. Patients in baseline/split.parquet keep their split."""

    method: Literal["official", "hash", "stratified"]
    """official: the published lists; if they have no validation list, validation is cut from training by a
    hash of the patient id. hash: by a hash of the patient id, so new patients never move existing ones.
    stratified: iterative stratification over patients, which spreads rare findings."""
    val: float = Field(gt=0, lt=0.5)
    """Fraction of patients for validation (official: of the training list; stratified: of the images)."""
    test: float = Field(gt=0, lt=0.5)
    """Fraction of patients (stratified: of the images) for test; an official test list is used unchanged."""
    seed: int = Field(ge=0, lt=2**31)
    """Random seed of the assignment."""
    same_image: Literal["fail", "warn", "join"] = "warn"
    """If the same image (equal bytes, or equal pixels after preprocessing) occurs under two patients: fail
    (error), warn (report the pairs), or join (report them and put these patients into one split)."""
    thin: ThinConfig = ThinConfig()

    @model_validator(mode="after")
    def _leaves_training_patients(self) -> "SplitConfig":
        if self.val + self.test >= 0.9:
            raise ValueError(
                "val + test must be below 0.9, so that at least 10 % of the patients are left for training"
            )
        return self


class PreprocessConfig(Section):
    """How images become pixel arrays."""

    size: int = Field(ge=16, le=2048)
    """Height and width of a prepared image in pixels; images are resized by area averaging."""
    shard_images: int = Field(ge=1)
    """Maximum number of images per shard; a shard also ends at 512 MiB."""
    fit: Literal["stretch", "pad", "crop"] = "stretch"
    """How images are made square: stretch, pad (black, shorter side), or crop (centre, longer side)."""
    on_bad_image: Literal["fail", "quarantine"] = "fail"
    """Images that cannot be decoded or are blank: fail (error), or quarantine (exclude image and labels,
    with the reason in quarantine.parquet)."""
    max_bad_fraction: float = Field(default=0.01, ge=0, lt=1)
    """Maximum fraction of quarantined images; above it the run stops: the cause is likely systematic."""
    range: Literal["own", "percentile"] = "own"
    """Gray range of a 16-bit PNG. own: its minimum and maximum. percentile: its 1st and 99th percentile,
    so that a few saturated pixels (markers) do not darken the image."""
    monochrome1: Literal["fail", "invert", "keep"] = "fail"
    """PNG or JPEG images that the table marks as MONOCHROME1 (high values are dark): fail (error), invert
    (invert the pixels), or keep (use them unchanged: they were inverted when the files were made)."""


class PhantomParams(Section):
    """Read by the step phantom."""

    phantom: PhantomConfig


class ValidateParams(Section):
    """Read by the step validate."""

    data: DataConfig


class PreprocessParams(Section):
    """Read by the step preprocess."""

    data: DataConfig
    split: SplitConfig
    preprocess: PreprocessConfig
