"""What the step preprocess says about the data it prepared: the contents of dataset.json and class_counts.json."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from pydantic import TypeAdapter

from ral.files import write_json
from ral.preparation import ImageProfile, Preparation
from ral.records import Record, read_validated


class Shard(Record):
    """A file of packed images."""

    name: str
    images: int
    sha256: str


class SameImageCounts(Record):
    """Images that are listed under more than one patient."""

    images: int
    patients: int
    apart: int
    """How many of the images have patients in more than one split."""
    examples: Sequence[Sequence[str]]
    """For each of the first images, the rows that list it."""
    joined: bool
    """Whether all patients of an image are in one split (split.same_image: join)."""


class Note(Record):
    """A warning about used images, or a correction that was applied to them."""

    text: str
    images: int
    examples: Sequence[str]
    """Ids of the first images."""


class BoxCounts(Record):
    """What became of the rows of the box tables (data.boxes)."""

    boxes: int
    images: int
    no_image: int
    """Boxes of images that are not used."""
    cut_off: int
    """Boxes in a part of the image that preprocess.fit: crop cuts off."""


class SplitSize(Record):
    """Size of a split."""

    images: int
    patients: int


class DatasetInfo(Record):
    """Content of dataset.json."""

    if_damaged: ClassVar[str] = "Run `dvc repro preprocess`."

    source: str
    phantom: bool
    images: int
    patients: int
    rows: int
    """Rows of the label table."""
    left_out: Mapping[str, int]
    """Reason -> number of excluded rows and images."""
    same_image: SameImageCounts
    inverted: int
    """Images inverted because the table marks them as MONOCHROME1."""
    notes: Mapping[str, Note]
    findings: tuple[str, ...]
    """The findings to learn, in the order of the model's outputs."""
    size: int
    """Height and width of an image in pixels."""
    pixel_mean: float
    """Mean of all pixels of the training images."""
    pixel_deviation: float
    preparation: Preparation | None = None
    """Null in data that an earlier version prepared, as is `profile`."""
    profile: ImageProfile | None = None
    split: Mapping[str, SplitSize]
    shards: Sequence[Shard]
    boxes: BoxCounts | None = None
    """Null if there are no boxes (data.boxes)."""


class LabelCounts(Record):
    """Images of a split, and labels by finding."""

    images: int
    positives: Mapping[str, int]
    negatives: Mapping[str, int]
    unknown: Mapping[str, int]


# Content of class_counts.json: by split.
ClassCounts = Mapping[str, LabelCounts]


def read_class_counts(path: Path) -> ClassCounts:
    """Read class_counts.json.

    Raises:
        UserError: the file is damaged, or another version wrote it.
        FileNotFoundError: the step preprocess has not run.
    """
    return read_validated(path, TypeAdapter(dict[str, LabelCounts]).validate_python, DatasetInfo.if_damaged)


def write_class_counts(path: Path, counts: ClassCounts) -> None:
    """Write class_counts.json."""
    write_json(path, {split: labels.to_json() for split, labels in counts.items()})
