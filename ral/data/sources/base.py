"""Base class of sources: location of the tables, meaning of the columns, and conversion to the pipeline's table."""

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
from ral.data.file_hash import FileHash
from ral.data.images.file_hashes import FileHashCache, FileStat
from ral.data.images.locate import COLUMNS as IMAGE_COLUMNS
from ral.data.images.locate import content_hash, list_images, read_file, total_bytes
from ral.errors import UserError
from ral.labels import LABEL_SETS, NO_FINDING, SUPPORT_DEVICES, unknown_finding

# Higher ages are typing errors (NIH's edition of 2017 has 414); they become unknown.
OLDEST = 120
# Text without leading or trailing blanks.
TRIMMED = r"(?s)^\S(?:.*\S)?\Z"
# Values of a label column and their meaning.
LABEL_VALUES = {
    "1": "present", "1.0": "present", "True": "present",
    "0": "absent", "0.0": "absent", "False": "absent",
    "-1": "uncertain", "-1.0": "uncertain",
    "": "unmentioned",
}  # fmt: skip
# Value of an uncertain label in the pipeline's table, where it is kept.
UNCERTAIN = -1
SEXES: dict[str, str | None] = {"M": "M", "F": "F"}
VIEWS = {view: view for view in ("PA", "AP", "FRONTAL", "LATERAL", "OTHER")}


@dataclass(frozen=True)
class DelimitedLabels:
    """All labels of an image in one column.

    Attributes:
        column: the column.
        parse: splits a text into words; raises ValueError if it is malformed.
        words: every allowed word -> its findings (none, for a word that maps to no finding).
        unknown: words that make all labels of the image unknown.
        none: words that mean no finding.
        between: separator of the words, for messages.
    """

    column: str
    parse: Callable[[str], list[str]]
    words: Mapping[str, tuple[str, ...]]
    unknown: frozenset[str] = frozenset()
    none: frozenset[str] = frozenset({NO_FINDING})
    between: str = "|"


@dataclass(frozen=True)
class ColumnLabels:
    """One column per finding, with LABEL_VALUES.

    Attributes:
        columns: finding -> column.
        no_finding: column that marks images without findings.
    """

    columns: Mapping[str, str]
    no_finding: str | None = None


@dataclass(frozen=True)
class Layout:
    """Meaning of the columns of a source's raw rows; checks and conversion are derived from it.

    All raw cells are text, "" if empty. A role without a column is None.
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
    """Path of the image file below the data folder; None: images are found by file name."""
    split: str | None = None
    """Official split: train, val or test."""
    photometric: str | None = None
    """MONOCHROME1 (high values are dark) or MONOCHROME2, of images whose format cannot express it (PNG, JPEG)."""
    views: Mapping[str, str] = field(default_factory=lambda: VIEWS)
    """Value of the view column -> PA, AP, FRONTAL, LATERAL or OTHER."""
    only_view: str = "FRONTAL"
    """View of all images if there is no view column."""
    sexes: Mapping[str, str | None] = field(default_factory=lambda: SEXES)
    image_pattern: str = TRIMMED
    image_check: str = "image id is there"
    patient_pattern: str = TRIMMED
    patient_check: str = "patient id is there"
    patient_remedy: str = "Correct the patient id: one person under two spellings could both train and test."
    age_pattern: str = r"^(?:-?[0-9]+(?:\.0*)?)?\Z"
    vocabulary: Literal["critical", "warning"] = "critical"
    """Severity of an unknown label word; after a warning it counts as no finding."""
    contradiction: Literal["critical", "warning"] = "critical"
    """Severity of No Finding beside a finding: an error in a manual table, a warning from an automatic labeller."""
    patients_known: bool = True
    one_spelling: bool = True
    """Whether patient ids are spelled consistently, so that look-alike ids are an error instead of a warning."""
    hints: Mapping[str, str] = field(default_factory=dict)
    """Role -> sentence for the remedy of a failed check: the keys that describe a user's own table. Roles are the
    fields above, from image to photometric."""


class Source(ABC):
    """A data set in its original layout. A subclass named Reader in ral/data/sources/<name>.py is a source."""

    layout: Layout

    def __init__(self, config: DataConfig) -> None:
        self.config, self.root = config, Path(config.root)
        if not self.root.is_dir():
            raise UserError(
                f"The data folder {self.root} does not exist. Set data.root in params.yaml to your folder "
                "(or RAL_DATA_ROOT, "
                "or data_root in ral.toml, where one of them is set)."
            )

    @property
    def label_set(self) -> Mapping[str, str]:
        """Finding -> original name, for the chosen label set."""
        sets = LABEL_SETS[self.config.source]
        return sets[self.config.labels or next(iter(sets))]

    @abstractmethod
    def tables(self) -> list[Path]:
        """The label tables; validation records their hashes.

        Raises:
            UserError: one is missing, or there are several editions.
        """

    def named(self) -> str:
        """The tables, for messages; rows are numbered per table."""
        return " and ".join(str(path) for path in self.tables())

    @abstractmethod
    def read(self) -> pd.DataFrame:
        """Read the raw rows, one per image, with a column `row`: the line in the file.

        Raises:
            UserError: a table lacks a column, has no rows or is malformed.
        """

    def iter_chunks(self) -> Iterator[pd.DataFrame]:
        """Yield the raw rows of `read` in chunks, in order, so that tables larger than memory can be validated."""
        yield self.read()

    @property
    def image_columns(self) -> list[str]:
        """The columns of the raw rows that `images` and `image_bytes` use."""
        # A table may use file paths as image ids.
        return list(dict.fromkeys((self.layout.image, self.layout.path))) if self.layout.path else []

    def images(
        self, raw: pd.DataFrame, progress: Callable[[int], None], hash_cache: FileHashCache | None = None
    ) -> tuple[pd.DataFrame, dict[str, FileHash]]:
        """Locate the images of the raw rows; arguments and result as in `ral.data.images.locate.list_images`."""
        if self.layout.path is None:
            return list_images(self.root, progress, hash_cache)
        image_ids, paths = raw[self.layout.image], raw[self.layout.path]
        return addressed_images(self.root, image_ids, paths, progress, hash_cache), {}

    def image_bytes(self, raw: pd.DataFrame) -> int:
        """Total bytes that `images` reports to its progress callback."""
        if self.layout.path is None:
            return total_bytes(self.root)
        return sum(
            file_stat.size
            for path in raw[self.layout.path].unique()
            if (file_stat := _file_stat(self.root, path))
        )

    def to_studies(self, raw: pd.DataFrame, mark_uncertain: bool = False) -> pd.DataFrame:
        """Convert validated raw rows to the pipeline's table.

        Args:
            raw: rows as `read` returns them.
            mark_uncertain: with data.uncertain: keep, uncertain labels are -1 instead of null.

        Returns:
            image_id, patient_id, study_id, view, sex and age_years (null if unknown), official (if the layout has a
            split), monochrome1 (bool, if the layout has photometric), and one float32 column per finding: 1, 0, or
            null if unknown.
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
        uncertain = self.config.uncertain
        if uncertain == "keep" and not mark_uncertain:
            uncertain = "ignore"
        labels = read_labels(raw, layout.labels, uncertain, self.config.unmentioned)
        return pd.DataFrame({**studies, **labels})

    def official(self, studies: pd.DataFrame) -> pd.Series:
        """The official split of each row: train, val, test; null if an image is on no list.

        Raises:
            UserError: the source has no official split.
        """
        if "official" not in studies:
            hint = self.layout.hints.get("split", "")
            raise UserError(
                f"The source {self.config.source} has no official split. Set split.method to hash or stratified."
                + (f" {hint}" if hint else "")
            )
        return studies["official"]

    def findings(self) -> tuple[str, ...]:
        """The findings to learn: data.findings, or all findings of the source.

        Raises:
            UserError: one is not in the label set of the source; the message suggests the closest.
        """
        available = label_names(self.layout.labels)
        if self.config.findings is None:
            return available
        problem = unknown_finding(self.config.findings, available)
        if problem:
            raise UserError(f"data.findings: {problem}")
        return tuple(self.config.findings)


def open_source(config: DataConfig) -> Source:
    """Open the source `data.source`, which is the module of that name in this package.

    Raises:
        UserError: the data folder does not exist.
    """
    module = importlib.import_module(f"ral.data.sources.{config.source}")
    source: Source = module.Reader(config)
    return source


def label_names(labels: DelimitedLabels | ColumnLabels) -> tuple[str, ...]:
    """The findings of a layout, in order."""
    if isinstance(labels, ColumnLabels):
        return tuple(labels.columns)
    return tuple(dict.fromkeys(name for names in labels.words.values() for name in names))


def read_labels(
    raw: pd.DataFrame, labels: DelimitedLabels | ColumnLabels, uncertain: str, unmentioned: str
) -> dict[str, np.ndarray]:
    """Labels float32 [rows] by finding: 1, 0, NaN if unknown, UNCERTAIN.

    Empty labels of an image labelled No Finding become 0 (except support devices, which No Finding does not exclude).

    Args:
        uncertain: value of -1: ignore (NaN), positive, negative, or keep (UNCERTAIN).
        unmentioned: value of other empty cells: unknown (NaN) or negative.
    """
    if isinstance(labels, DelimitedLabels):
        return _read_delimited(raw[labels.column], labels)
    meaning = {
        "present": 1.0,
        "absent": 0.0,
        "uncertain": {"ignore": np.nan, "positive": 1.0, "negative": 0.0, "keep": UNCERTAIN}[uncertain],
        "unmentioned": 0.0 if unmentioned == "negative" else np.nan,
    }
    values = {text: np.float32(meaning[word]) for text, word in LABEL_VALUES.items()}
    healthy = (
        rows_with_meaning(raw, labels.no_finding, "present")
        if labels.no_finding
        else np.zeros(len(raw), bool)
    )
    result = {}
    for finding, column in labels.columns.items():
        value = raw[column].map(values).to_numpy(np.float32, na_value=np.nan)
        if finding not in (SUPPORT_DEVICES, NO_FINDING):
            value = np.where(healthy & (raw[column] == "").to_numpy(), np.float32(0), value)
        result[finding] = value
    return result


def rows_with_meaning(raw: pd.DataFrame, column: str, word: str) -> np.ndarray:
    """Which rows have the meaning `word` (of LABEL_VALUES) in a label column, bool [rows]."""
    return raw[column].isin([text for text, meaning in LABEL_VALUES.items() if meaning == word]).to_numpy()


def _read_delimited(column: pd.Series, labels: DelimitedLabels) -> dict[str, np.ndarray]:
    """Rows have few distinct label texts, so each text is parsed once and rows look up the result by code."""
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
    """Split each text into words; None where it is malformed."""
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
    raw: pd.DataFrame, column: str | None, words: Mapping[str, str | None], default: str | None
) -> pd.Series:
    """Map the values of a column to those of the pipeline, keeping the column's text type."""
    if column is None:
        return pd.Series(default, index=raw.index, dtype="str")
    codes, texts = pd.factorize(raw[column], use_na_sentinel=False)
    translated = pd.Series([words.get(text) for text in texts], dtype=raw[column].dtype)
    return translated.take(codes).set_axis(raw.index)


def _age(raw: pd.DataFrame, layout: Layout) -> pd.Series:
    """Ages in years, float32; each distinct text is parsed once."""
    if layout.age is None:
        return pd.Series(np.nan, index=raw.index, dtype="float32")
    codes, texts = pd.factorize(raw[layout.age], use_na_sentinel=False)
    ages = pd.to_numeric(pd.Series(texts, dtype="str"), errors="coerce").astype("float32")
    plausible = ages.where(ages.between(0, OLDEST)).to_numpy()
    return pd.Series(plausible[codes], index=raw.index, dtype="float32")


def addressed_images(
    root: Path,
    image_ids: pd.Series,
    paths: pd.Series,
    progress: Callable[[int], None],
    hash_cache: FileHashCache | None = None,
) -> pd.DataFrame:
    """List the images that a table names by path, with the columns of `list_images`, sorted by path.

    Rows without a file are skipped; validation decides whether that is an error.
    """
    hash_cache = hash_cache or FileHashCache(None)
    cached = hash_cache.images(root)
    rows, file_stats = [], []
    for path, image_id in sorted(zip(paths, image_ids, strict=True)):
        file_stat = _file_stat(root, path)
        if file_stat is not None:
            digest = cached.get((path, file_stat)) or content_hash(read_file(root / path))
            progress(file_stat.size)
            rows.append((image_id, path, "", -1, file_stat.size, digest))
            file_stats.append(file_stat)
    images = pd.DataFrame(rows, columns=IMAGE_COLUMNS)
    hash_cache.put_images(root, images["path"].tolist(), file_stats, images["hash"].tolist())
    return images.drop_duplicates("image_id", ignore_index=True)


def _file_stat(root: Path, path: str) -> FileStat | None:
    """Metadata of an image file below the data folder; None if there is no such file."""
    if not path or Path(path).is_absolute() or ".." in Path(path).parts or not os.path.isfile(root / path):
        return None
    return FileStat.of(root / path)
