"""Parameters of the data: phantom images, the source, the split, the pixels."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from ral.config.base import FileBelow, Section
from ral.labels import ADDED_COLUMNS, LABEL_SETS, RESERVED_NAMES, is_spreadsheet_safe, unknown_finding

# The registry of sources: each is the file of that name in ral/data/sources/.
SourceName = Literal[
    "nih",
    "chexpert",
    "mimic",
    "padchest",
    "vindr",
    "chestmnist",
    "table",
]

View = Literal["PA", "AP", "FRONTAL", "LATERAL", "OTHER"]


def _not_added(name: str) -> str:
    if name in ADDED_COLUMNS:
        raise ValueError(f"the pipeline adds a column `{name}` of its own: rename it in your table")
    return name


# A column of one's own table.
Column = Annotated[str, Field(min_length=1), AfterValidator(_not_added)]


class PhantomConfig(Section):
    """The phantom images drawn when no real data is given."""

    images: int = Field(ge=200)
    """How many images to draw; a patient has one to twelve of them."""
    size: int = Field(ge=48)
    """Height and width of an image in pixels."""
    floor: float = Field(gt=0, lt=0.2)
    """Least prevalence of a finding: rarer ones of NIH's table are raised to it so that each can be scored."""
    seed: int = Field(ge=0, lt=2**31)
    """Seed of everything drawn; the same seed gives the same bytes."""


class TableConfig(Section):
    """Which column of your own CSV or Parquet file holds what (used by `source: table`); null: there is none."""

    file: FileBelow = "table.csv"
    """The table, below `data.root`: .csv, .csv.gz or .parquet (a file, or a folder of parts)."""
    separator: str = Field(default=",", min_length=1, max_length=1)
    """What separates the columns of a CSV file."""
    image_id: Column = "image_id"
    """Column with an id of its own for each image."""
    patient_id: Column = "patient_id"
    """Column with the patient's id; what shares it is never split."""
    study_id: Column | None = None
    """Column with the study's id; null: each image is a study of its own."""
    follow_up: Column | None = None
    """Column that numbers a patient's studies in time; null: no order is checked."""
    path: Column | None = None
    """Column with the image's file below `data.root`; null: images are found in images/ or in archives images* (tar.gz, tar, zip) by image id."""
    view: Column | None = None
    """Column with the view; null: all images are FRONTAL."""
    views: dict[str, View] = Field(default_factory=dict)
    """What the words of the view column mean, where they are not PA, AP, FRONTAL, LATERAL or OTHER."""
    sex: Column | None = None
    """Column with the patient's sex."""
    sexes: dict[str, Literal["M", "F"] | None] = Field(default_factory=dict)
    """What the words of the sex column mean, where they are not M and F; null: unknown."""
    age_years: Column | None = None
    """Column with the age in whole years."""
    split: Column | None = None
    """Column with the official split (train, val, test); null: there is none."""
    photometric: Column | None = None
    """Column that says MONOCHROME1 (high values are dark) or MONOCHROME2 of PNG and JPEG images (see `preprocess.monochrome1`); null: all are MONOCHROME2. DICOM files say it themselves."""
    labels: Column | None = None
    """Column with the names of an image's findings, joined by `label_separator`; null: a column per finding."""
    label_separator: str = Field(default="|", min_length=1)
    """What joins the names in the column `labels`."""
    findings: dict[str, Column] = Field(default_factory=dict)
    """Finding -> its column (1, 0, -1 uncertain, empty unknown), or its word in the column `labels`."""
    no_finding: Column | None = None
    """The column, or the word in the column `labels`, that says there is no finding."""

    @field_validator("findings")
    @classmethod
    def _not_reserved(cls, findings: dict[str, str]) -> dict[str, str]:
        twice = [word for word in findings.values() if list(findings.values()).count(word) > 1]
        if twice:
            raise ValueError(f"`{twice[0]}` stands for two findings: give each its own column or word")
        for name in findings:
            if not name.strip():
                raise ValueError("a finding has no name")
            if name.lower() in RESERVED_NAMES:
                raise ValueError(
                    f"`{name}` names a column or a group of the pipeline's own tables: call that finding otherwise"
                )
            if not is_spreadsheet_safe(name):
                raise ValueError(
                    f"`{name}` would be a formula or several cells in a spreadsheet: call that finding otherwise"
                )
        return findings


class DriftConfig(Section):
    """How far a delivery may be from the accepted profile (baseline/profile.json); without one nothing is compared.

    The population stability index of a column or label is the sum of (now − then) · ln(now / then) over its
    values' shares; 0.1 and 0.25 are the limits in common use.
    """

    warn: float = Field(default=0.1, gt=0)
    """Stability index above which a column or label is a warning."""
    fail: float = Field(default=0.25, gt=0)
    """Stability index above which a column or label stops the run."""
    prevalence: float = Field(default=2.0, gt=1)
    """A finding this many times as frequent or as rare as accepted is a warning, if it is more than noise."""
    rows: float = Field(default=0.9, gt=0, le=1)
    """Fewer rows than this share of the accepted ones are a warning."""

    @model_validator(mode="after")
    def _ordered(self) -> "DriftConfig":
        if self.fail < self.warn:
            raise ValueError(f"fail ({self.fail}) must not be below warn ({self.warn})")
        return self


class DataConfig(Section):
    """Which images and labels are used."""

    source: SourceName
    """Layout of the folder `root`, each as its owners ship it (docs/sources.md); table: your own CSV or Parquet."""
    root: str = Field(min_length=1)
    """Folder with the tables, the official lists and the images (archives, or unpacked). DVC's steps depend on its content, not on its place; RAL_DATA_ROOT overrides it."""
    labels: str | None = None
    """Which label set of the source. mimic: chexpert, cxr_lt_2023, cxr_lt_2024_task1, cxr_lt_2024_task2 or
    cxr_lt_2024_all; padchest: padchest or cxr_lt_2026. null: the first named."""
    missing_images: Literal["fail", "drop"]
    """A row of the table without an image is an error (fail), or is left out and counted (drop)."""
    views: list[View] = Field(min_length=1)
    """Views kept; images of others are left out and counted. FRONTAL: the source says no more; kept with PA and AP."""
    findings: list[str] | None = Field(default=None, min_length=1)
    """Findings to train on, in this order; null means all of the source's label set."""
    uncertain: Literal["ignore", "positive", "negative"] = "ignore"
    """What a label of uncertain (-1) becomes: unknown, 1 or 0 (U-Ignore, U-Ones, U-Zeros of the CheXpert paper)."""
    unmentioned: Literal["unknown", "negative"] = "unknown"
    """What an empty label becomes where the image is not labelled No Finding."""
    readers: Literal["majority", "any"] = "majority"
    """vindr: a finding is positive if more than half of an image's readers see it, or if any does."""
    pseudonymise: str | None = Field(default=None, min_length=1)
    """Salt file: ids in the prepared data become keyed hashes and paths are left out; null: ids stay."""
    table: TableConfig = TableConfig()
    drift: DriftConfig = DriftConfig()

    @field_validator("findings", "views")
    @classmethod
    def _once(cls, names: list[str] | None) -> list[str] | None:
        if names and len(set(names)) < len(names):
            raise ValueError("a name stands there twice: name each once")
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
                    "table.findings is empty: say which column, or word, stands for which finding"
                )
            wrong = unknown_finding(self.findings or [], self.table.findings)
            if wrong:
                raise ValueError(f"findings: {wrong}")
        return self


class SplitConfig(Section):
    """How patients are shared out to train, val and test. With baseline/split.parquet, its patients stay where they are."""

    method: Literal["official", "hash", "stratified"]
    """official: the lists that come with the data, validation cut from the training list by patient hash where
    they have none. hash: by a hash of the patient id, so that a new patient never moves an old one. stratified:
    rare findings spread over the splits (iterative stratification over patients)."""
    val: float = Field(gt=0, lt=0.5)
    """Share of patients for validation (official: of the patients on the training list; stratified: of the images)."""
    test: float = Field(gt=0, lt=0.5)
    """Share of patients (stratified: of the images) for test; the official test list is fixed."""
    seed: int = Field(ge=0, lt=2**31)
    """Another seed gives another assignment of patients."""
    same_image: Literal["fail", "warn", "join"] = "warn"
    """What to do where the same image (equal bytes, or equal pixels once prepared) stands under two patients: stop (fail), report the pairs (warn), or report them and put such patients into one split (join)."""

    @model_validator(mode="after")
    def _leaves_training_patients(self) -> "SplitConfig":
        if self.val + self.test >= 0.9:
            raise ValueError("val + test must be below 0.9, so that at least a tenth of the patients train")
        return self


class PreprocessConfig(Section):
    """What becomes of an image's pixels."""

    size: int = Field(ge=16, le=2048)
    """Height and width of a prepared image in pixels, reached by area averaging."""
    shard_images: int = Field(ge=1)
    """Most images in one pixel shard; a shard of large images ends earlier, at 512 MiB."""
    fit: Literal["stretch", "pad", "crop"] = "stretch"
    """How an image that is no square becomes one: stretched, its shorter side padded with black, or its longer side
    cut evenly."""
    on_bad_image: Literal["fail", "quarantine"] = "fail"
    """An image that cannot be decoded, or is blank, is an error (fail), or is left out, label and all, with its reason in
    quarantine.parquet."""
    max_bad_fraction: float = Field(default=0.01, ge=0, lt=1)
    """Largest share of images that may be quarantined; more of them are an error, for then something else is wrong."""
    range: Literal["own", "percentile"] = "own"
    """Which values of a 16-bit PNG become black and white: its own least and greatest (own), or its 1st and 99th percentile (percentile), so that a few saturated pixels such as markers do not darken the rest."""
    monochrome1: Literal["fail", "invert", "keep"] = "fail"
    """A PNG or JPEG image that the table says is MONOCHROME1 (high values are dark): stop (fail), invert its pixels (invert), or use them as they are stored, because they were inverted when the files were made (keep)."""


class PhantomParams(Section):
    """Read by the step phantom."""

    phantom: PhantomConfig


class ManifestParams(Section):
    """Read by the step manifest."""

    data: DataConfig


class ValidateParams(Section):
    """Read by the step validate."""

    data: DataConfig


class PreprocessParams(Section):
    """Read by the step preprocess."""

    data: DataConfig
    split: SplitConfig
    preprocess: PreprocessConfig
