"""What a source is: where its tables are, what their columns mean, and the pipeline's one table made from them."""

import importlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from ral.config.data import DataConfig
from ral.data.images.file_hashes import FileHashCache, FileStat
from ral.data.images.locate import COLUMNS as IMAGE_COLUMNS
from ral.data.images.locate import content_hash, list_images, read_file, total_bytes
from ral.errors import UserError
from ral.labels import LABEL_SETS, NO_FINDING, SUPPORT_DEVICES, unknown_finding

# Ages above this are typing errors in the table (NIH's edition of 2017 has 414); they become unknown.
OLDEST = 120
# A text without blanks at its ends.
TRIMMED = r"(?s)^\S(?:.*\S)?\Z"
# What a label column may hold, and what it says: present, absent, uncertain, nothing.
LABEL_VALUES = {
    "1": "present", "1.0": "present", "True": "present",
    "0": "absent", "0.0": "absent", "False": "absent",
    "-1": "uncertain", "-1.0": "uncertain",
    "": "unmentioned",
}  # fmt: skip
SEXES: dict[str, str | None] = {"M": "M", "F": "F"}
VIEWS = {view: view for view in ("PA", "AP", "FRONTAL", "LATERAL", "OTHER")}


@dataclass(frozen=True)
class DelimitedLabels:
    """All labels of an image in one column.

    Attributes:
        column: the column.
        parse: the words of a text; ValueError where the text is not of that form.
        words: every word allowed -> the findings it stands for (none, for a word that no finding is made of).
        unknown: words after which nothing is known of the image's labels.
        none: the words for no finding.
        between: what joins the words, for people.
    """

    column: str
    parse: Callable[[str], list[str]]
    words: Mapping[str, tuple[str, ...]]
    unknown: frozenset[str] = frozenset()
    none: frozenset[str] = frozenset({NO_FINDING})
    between: str = "|"


@dataclass(frozen=True)
class ColumnLabels:
    """A column per finding, with LABEL_VALUES.

    Attributes:
        columns: finding -> column.
        no_finding: the column that says there is none.
    """

    columns: Mapping[str, str]
    no_finding: str | None = None


@dataclass(frozen=True)
class Layout:
    """Which column of a source's raw rows holds what; checks and conversion are both made from it.

    The raw rows are text throughout, "" where a cell is empty. A role without a column is None.
    """

    image: str
    patient: str
    labels: DelimitedLabels | ColumnLabels
    study: str | None = None
    follow_up: str | None = None
    view: str | None = None
    sex: str | None = None
    age: str | None = None
    path: str | None = None
    """The image's file below the data folder; None: images are found by their file names."""
    split: str | None = None
    """train, val or test, as the owners share the images out."""
    photometric: str | None = None
    """MONOCHROME1 (high values are dark) or MONOCHROME2, of images whose files cannot say it (PNG, JPEG)."""
    views: Mapping[str, str] = field(default_factory=lambda: VIEWS)
    """Word of the view column -> PA, AP, FRONTAL, LATERAL or OTHER."""
    only_view: str = "FRONTAL"
    """The view of all images where there is no view column."""
    sexes: Mapping[str, str | None] = field(default_factory=lambda: SEXES)
    image_pattern: str = TRIMMED
    image_check: str = "image id is there"
    patient_pattern: str = TRIMMED
    patient_check: str = "patient id is there"
    patient_remedy: str = "Correct the patient id: one person under two spellings could both train and test."
    age_pattern: str = r"^(?:-?[0-9]+(?:\.0*)?)?\Z"
    vocabulary: Literal["critical", "warning"] = "critical"
    """How bad a word is that is no label; after a warning it stands for no finding."""
    contradiction: Literal["critical", "warning"] = "critical"
    """How bad No Finding beside a finding is: an error in a table typed by people, a warning in a text labeller's."""
    patients_known: bool = True
    one_spelling: bool = True
    """Whether the owners write each patient id in one way, so that two that look alike are an error and no warning."""


class Source(ABC):
    """A data set as its owners ship it. A subclass named Reader in ral/data/sources/<name>.py is a source."""

    layout: Layout

    def __init__(self, config: DataConfig) -> None:
        self.config, self.root = config, Path(config.root)
        if not self.root.is_dir():
            raise UserError(
                f"The data folder {self.root} does not exist. Set data.root in params.yaml to your folder (or RAL_DATA_ROOT, "
                "or data_root in ral.toml, where one of them is set)."
            )

    @property
    def label_set(self) -> Mapping[str, str]:
        """Finding -> owner's name, of the chosen label set."""
        sets = LABEL_SETS[self.config.source]
        return sets[self.config.labels or next(iter(sets))]

    @abstractmethod
    def tables(self) -> list[Path]:
        """The label tables, whose hashes go into the validation.

        Raises:
            UserError: one is missing, or there is more than one edition.
        """

    def named(self) -> str:
        """The tables for a message; each counts its own rows."""
        return " and ".join(str(path) for path in self.tables())

    @abstractmethod
    def read(self) -> pd.DataFrame:
        """The raw rows, one per image, and a column `row`: the line of the file.

        Raises:
            UserError: a table lacks a column, has no rows or is no regular table.
        """

    def iter_chunks(self) -> Iterator[pd.DataFrame]:
        """The raw rows as `read` has them, some at a time and in order, so that validation can check a table larger than memory."""
        yield self.read()

    @property
    def image_columns(self) -> list[str]:
        """The columns of the raw rows that `images` and `image_bytes` look at."""
        # A table may give the files' paths as image ids.
        return list(dict.fromkeys((self.layout.image, self.layout.path))) if self.layout.path else []

    def images(
        self, raw: pd.DataFrame, progress: Callable[[int], None], memory: FileHashCache | None = None
    ) -> tuple[pd.DataFrame, dict[str, dict]]:
        """Where the images of the raw rows are, as `ral.data.images.locate.list_images` says it, whose arguments these are."""
        if self.layout.path is None:
            return list_images(self.root, progress, memory)
        image_ids, paths = raw[self.layout.image], raw[self.layout.path]
        return addressed_images(self.root, image_ids, paths, progress, memory), {}

    def image_bytes(self, raw: pd.DataFrame) -> int:
        """How many bytes `images` reports to its progress."""
        if self.layout.path is None:
            return total_bytes(self.root)
        return sum(
            stamp.size for path in raw[self.layout.path].unique() if (stamp := _stamp(self.root, path))
        )

    def to_studies(self, raw: pd.DataFrame) -> pd.DataFrame:
        """The pipeline's table from raw rows that passed validation.

        Returns:
            image_id, patient_id, study_id, view, sex (null where unknown), age_years (null where unknown), official
            (only where the layout has a split), monochrome1 (bool, only where the layout has photometric), and one
            float32 column per finding: 1, 0, null where unknown.
        """
        layout = self.layout
        studies = {
            "image_id": raw[layout.image],
            "patient_id": raw[layout.patient],
            "study_id": _study(raw, layout),
            "view": _translated(raw, layout.view, layout.views, layout.only_view),
            "sex": _translated(raw, layout.sex, layout.sexes, None),
            "age_years": _age(raw, layout),
        }
        if layout.split:
            studies["official"] = raw[layout.split].where(raw[layout.split] != "")
        if layout.photometric:
            studies["monochrome1"] = raw[layout.photometric] == "MONOCHROME1"
        labels = read_labels(raw, layout.labels, self.config.uncertain, self.config.unmentioned)
        return pd.DataFrame({**studies, **labels})

    def official(self, studies: pd.DataFrame) -> pd.Series:
        """The owners' split of each row: train, val, test; null where an image is on no list.

        Raises:
            UserError: the source has none.
        """
        if "official" not in studies:
            raise UserError(
                f"The source {self.config.source} has no official split. Set split.method to hash or stratified."
            )
        return studies["official"]

    def findings(self) -> tuple[str, ...]:
        """The findings to learn: data.findings, or all of the source.

        Raises:
            UserError: one is not in the source's label set; the nearest is named.
        """
        known = label_names(self.layout.labels)
        if self.config.findings is None:
            return known
        wrong = unknown_finding(self.config.findings, known)
        if wrong:
            raise UserError(f"data.findings: {wrong}")
        return tuple(self.config.findings)


def open_source(config: DataConfig) -> Source:
    """The source that `data.source` names, which is the file of that name in this folder.

    Raises:
        UserError: the data folder does not exist.
    """
    module = importlib.import_module(f"ral.data.sources.{config.source}")
    source: Source = module.Reader(config)
    return source


def label_names(labels: DelimitedLabels | ColumnLabels) -> tuple[str, ...]:
    """The findings that a layout has labels of, in order."""
    if isinstance(labels, ColumnLabels):
        return tuple(labels.columns)
    return tuple(dict.fromkeys(name for names in labels.words.values() for name in names))


def read_labels(
    raw: pd.DataFrame, labels: DelimitedLabels | ColumnLabels, uncertain: str, unmentioned: str
) -> dict[str, np.ndarray]:
    """Labels float32 [rows] by finding: 1, 0, NaN where unknown.

    An image labelled No Finding has its empty labels 0 (but for support devices, which No Finding does not exclude).

    Args:
        uncertain: what -1 becomes: ignore (NaN), positive or negative.
        unmentioned: what an empty cell becomes else: unknown (NaN) or negative.
    """
    if isinstance(labels, DelimitedLabels):
        return _read_joined(raw[labels.column], labels)
    meaning = {
        "present": 1.0,
        "absent": 0.0,
        "uncertain": {"ignore": np.nan, "positive": 1.0, "negative": 0.0}[uncertain],
        "unmentioned": 0.0 if unmentioned == "negative" else np.nan,
    }
    values = {text: np.float32(meaning[word]) for text, word in LABEL_VALUES.items()}
    healthy = says(raw, labels.no_finding, "present") if labels.no_finding else np.zeros(len(raw), bool)
    found = {}
    for finding, column in labels.columns.items():
        value = raw[column].map(values).to_numpy(np.float32, na_value=np.nan)
        if finding not in (SUPPORT_DEVICES, NO_FINDING):
            value = np.where(healthy & (raw[column] == "").to_numpy(), np.float32(0), value)
        found[finding] = value
    return found


def says(raw: pd.DataFrame, column: str, word: str) -> np.ndarray:
    """Which rows say `word` (of LABEL_VALUES) in a label column, bool [rows]."""
    return raw[column].isin([text for text, meaning in LABEL_VALUES.items() if meaning == word]).to_numpy()


def _read_joined(column: pd.Series, labels: DelimitedLabels) -> dict[str, np.ndarray]:
    """Few distinct label texts stand for very many rows: each is split once, then rows look theirs up by code."""
    codes, texts = pd.factorize(column)
    findings = label_names(labels)
    number = {finding: index for index, finding in enumerate(findings)}
    table = np.zeros((len(texts), len(findings)), np.float32)
    for row, words in enumerate(parse_all(texts, labels)):
        if words is None or not labels.unknown.isdisjoint(words):
            table[row] = np.nan
            continue
        for word in words:
            for finding in labels.words.get(word, ()):
                table[row, number[finding]] = 1
    return {finding: table[codes, index] for finding, index in number.items()}


def parse_all(texts: pd.Index, labels: DelimitedLabels) -> list[list[str] | None]:
    """The words of each text; None where it is not of the form expected."""
    parsed: list[list[str] | None] = []
    for text in texts:
        try:
            parsed.append(labels.parse(text))
        except (ValueError, SyntaxError):
            parsed.append(None)
    return parsed


def _study(raw: pd.DataFrame, layout: Layout) -> pd.Series:
    if layout.study:
        return raw[layout.study]
    if layout.follow_up:
        return raw[layout.patient] + "_" + raw[layout.follow_up]
    return raw[layout.image]


def _translated(
    raw: pd.DataFrame, column: str | None, words: Mapping[str, str | None], otherwise: str | None
) -> pd.Series:
    """The words of a column in the pipeline's terms, in the column's own type of text."""
    if column is None:
        return pd.Series(otherwise, index=raw.index, dtype="str")
    codes, texts = pd.factorize(raw[column], use_na_sentinel=False)
    translated = pd.Series([words.get(text) for text in texts], dtype=raw[column].dtype)
    return translated.take(codes).set_axis(raw.index)


def _age(raw: pd.DataFrame, layout: Layout) -> pd.Series:
    """Ages in years, float32; each distinct text is read once, for there are few."""
    if layout.age is None:
        return pd.Series(np.nan, index=raw.index, dtype="float32")
    codes, texts = pd.factorize(raw[layout.age], use_na_sentinel=False)
    ages = pd.to_numeric(pd.Series(texts, dtype="str"), errors="coerce").astype("float32")
    known = ages.where(ages.between(0, OLDEST)).to_numpy()
    return pd.Series(known[codes], index=raw.index, dtype="float32")


def addressed_images(
    root: Path,
    image_ids: pd.Series,
    paths: pd.Series,
    progress: Callable[[int], None],
    memory: FileHashCache | None = None,
) -> pd.DataFrame:
    """The images that a table names by their files, in the columns of `list_images`, sorted by path.

    A row whose file does not exist is left out; whether that is an error is for validation to say.
    """
    memory = memory or FileHashCache(None)
    known = memory.images(root)
    rows, stamps = [], []
    for path, image_id in sorted(zip(paths, image_ids, strict=True)):
        stamp = _stamp(root, path)
        if stamp is not None:
            digest = known.get((path, stamp)) or content_hash(read_file(root / path))
            progress(stamp.size)
            rows.append((image_id, path, "", -1, stamp.size, digest))
            stamps.append(stamp)
    images = pd.DataFrame(rows, columns=IMAGE_COLUMNS)
    memory.keep_images(root, images["path"].tolist(), stamps, images["hash"].tolist())
    return images.drop_duplicates("image_id", ignore_index=True)


def _stamp(root: Path, path: str) -> FileStat | None:
    """Size and time of an image below the data folder; None where there is no such file."""
    if not path or Path(path).is_absolute() or ".." in Path(path).parts or not os.path.isfile(root / path):
        return None
    return FileStat.of(root / path)
