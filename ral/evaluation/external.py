"""What an external validation evaluated on what: the key `external_validation` of its metrics.json."""

from ral.records import Record


class ModelUsed(Record):
    """The model."""

    name: str
    source: str
    """data.source of its training images."""
    phantom: bool
    """Whether it was trained on phantom images."""
    calibration: str
    """Version of its calibration.json."""
    threshold_rule: str


class DataUsed(Record):
    """The labelled images."""

    name: str
    source: str
    split: str | None
    """The split of a prepared set, or all; null for any other data."""
    images: int
    """Number of images that were scored."""
    phantom: bool
    patients_known: bool
    excluded: dict[str, int]
    """Reason -> number of rows that were not evaluated."""
    notes: list[str]
    """What was noticed when the labels were read, for people."""


class FindingsUsed(Record):
    """The findings, by whether both sides have them."""

    evaluated: list[str]
    not_labelled: list[str]
    """Of the model alone."""
    not_in_model: list[str]
    """Of the data alone."""


class Patients(Record):
    """Number of evaluated patients whose id is also in the data of the model, by its split."""

    train: int
    val: int
    test: int


class ExternalValidation(Record):
    """What was evaluated on what."""

    model: ModelUsed
    data: DataUsed
    findings: FindingsUsed
    patients_of_model: Patients | None
    """Null if it is not known."""
    unlike_training_images: dict[str, int]
    """How images differ from the training images -> number of images."""
