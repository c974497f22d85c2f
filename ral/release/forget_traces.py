"""Recognizes the excluded patients in files: by the ids of the patients, their studies and images, and by file hashes.

Tables (Parquet, Arrow) are searched by column. All other files are searched as text, for ids of at least
`MIN_TEXT` characters: a shorter number may stand for something else.
"""

import json
import mmap
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ral.config.data import DataConfig
from ral.data.exclusions import Exclusions
from ral.data.images.file_hashes import FileHashCache
from ral.data.privacy import Pseudonymizer
from ral.data.sources.base import Source, open_source
from ral.errors import UserError

MIN_TEXT = 6
# Files of numbers and pixels only.
BINARY = (".safetensors", ".npy", ".png", ".onnx", ".pt2", ".pt")


@dataclass(frozen=True)
class Leaving:
    """The excluded patients in the source, held in memory only.

    Attributes:
        source: the source that has their images.
        rows: their raw rows; empty if the table no longer has them.
        images: the images of these rows, as of `ral.data.images.locate.list_images`.
        shared: hashes of those image files that other patients have, too.
        exclusions: who they are.
        pseudonymizer: makes the ids of the outputs.
    """

    source: Source
    rows: pd.DataFrame
    images: pd.DataFrame
    shared: frozenset[str]
    exclusions: Exclusions
    pseudonymizer: Pseudonymizer


def read_leaving(data: DataConfig, folder: Path, hash_cache: FileHashCache) -> Leaving:
    """Read the rows and find the images of the excluded patients.

    Args:
        data: the section data, with the folder of this machine.
        folder: project folder.
        hash_cache: hashes of files read earlier.

    Raises:
        UserError: no patient is excluded, or the data folder or a file is missing.
    """
    exclusions = Exclusions.of(data, folder)
    if not exclusions:
        raise UserError("No patient is excluded: data.exclude_patients names no file, or the file is empty.")
    # A relative data folder is one of the project.
    source = open_source(data.model_copy(update={"root": str(folder / data.root)}))
    layout, theirs, everyone = source.layout, [], []
    for chunk in source.iter_chunks():
        theirs.append(exclusions.inverted.kept(chunk, layout.patient))
        everyone.append(chunk[list(dict.fromkeys([layout.image, *source.image_columns]))])
    rows = pd.concat(theirs, ignore_index=True)
    images, _ = source.images(pd.concat(everyone, ignore_index=True), lambda _: None, hash_cache)
    listed = images["image_id"].isin(rows[layout.image])
    shared = frozenset(images.loc[listed, "hash"]) & frozenset(images.loc[~listed, "hash"])
    images = images[listed].reset_index(drop=True)
    return Leaving(source, rows, images, shared, exclusions, Pseudonymizer.of(data, folder))


@dataclass(frozen=True)
class Traces:
    """What the excluded patients are recognized by.

    Attributes:
        exclusions: who they are, for columns of patient ids.
        pseudonymizer: makes the ids of the outputs.
        in_source: whether the data folder has images of them.
        ids: ids of patients, studies and images as in the table, their pseudonyms, and the hashes of image files that
            nobody else has.
    """

    exclusions: Exclusions
    pseudonymizer: Pseudonymizer
    in_source: bool
    ids: frozenset[str] = field(repr=False)
    _texts: tuple[tuple[bytes, re.Pattern[bytes]], ...] = field(repr=False)

    @classmethod
    def of(cls, leaving: Leaving) -> "Traces":
        """Of the patients in the source and, without a salt, also of those whom it no longer has."""
        ids = set(leaving.images["hash"]) - leaving.shared
        if len(leaving.rows):
            studies = leaving.source.to_studies(leaving.rows)
            for name in ("patient_id", "study_id", "image_id"):
                ids |= set(studies[name])
        if not leaving.exclusions.salt:
            ids |= leaving.exclusions.entries
        if leaving.pseudonymizer.salt:
            ids |= set(leaving.pseudonymizer.ids(pd.Series(sorted(ids), dtype="str")))
            ids |= leaving.exclusions.entries
        return cls(
            exclusions=leaving.exclusions,
            pseudonymizer=leaving.pseudonymizer,
            in_source=len(leaving.images) > 0,
            ids=frozenset(ids),
            _texts=tuple(_patterns(ids)),
        )

    def in_file(self, path: Path, name: str | None = None) -> bool:
        """Whether a file has a trace of an excluded patient.

        Args:
            path: the file; a missing one has none.
            name: its name, if `path` is called otherwise (an object of a cache).
        """
        suffix = PurePosixPath(name or path.name).suffix.lower()
        try:
            if suffix == ".parquet":
                return self.in_table(pq.read_table(path))
            if suffix == ".arrow":
                with pa.memory_map(str(path)) as stream:
                    return self.in_table(_without_pixels(pa.ipc.open_file(stream).read_all()))
            if suffix in BINARY:
                return False
        except FileNotFoundError:
            return False
        except pa.ArrowException:  # a damaged table, or another format under the name of one
            pass
        return self._in_content(path)

    def in_folder(self, folder: Path) -> bool:
        """Whether a file below a folder has a trace, or the name of one."""
        if folder.is_file():
            return self.in_file(folder)
        return any(
            self.in_text(path.name.encode()) or (path.is_file() and self.in_file(path))
            for path in sorted(folder.rglob("*"))
        )

    def in_table(self, table: pa.Table) -> bool:
        """Whether a column of text has one of the ids."""
        for name in table.column_names:
            column = table[name]
            if pa.types.is_dictionary(column.type):
                column = column.cast(column.type.value_type)
            if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
                continue
            values = pd.Series(column.unique().to_pylist(), dtype="str").dropna()
            if values.isin(self.ids).any() or (name == "patient_id" and self.patients(values).any()):
                return True
            if self.in_text("\n".join(values).encode()):  # such as paths
                return True
        return False

    def patients(self, ids: "pd.Series[str]") -> "pd.Series[bool]":
        """Which patient ids of an output are of excluded patients; old outputs may have ids or pseudonyms."""
        found = self.exclusions.match(ids) | self.exclusions.match_prepared(ids, self.pseudonymizer)
        return pd.Series(found, index=ids.index)

    def in_text(self, content: bytes | mmap.mmap) -> bool:
        """Whether a text has one of the longer ids, not as a part of a longer word or number."""
        return any(content.find(word) >= 0 and pattern.search(content) for word, pattern in self._texts)

    def _in_content(self, path: Path) -> bool:
        if not path.is_file() or not path.stat().st_size:
            return False
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return self.in_text(content)


def _patterns(ids: Iterable[str]) -> Iterable[tuple[bytes, re.Pattern[bytes]]]:
    for text in sorted(ids):
        if len(text) < MIN_TEXT:
            continue
        # JSON may write other letters than ASCII as escapes.
        for word in {text.encode(), json.dumps(text)[1:-1].encode()}:
            yield word, re.compile(rb"(?<![0-9A-Za-z])" + re.escape(word) + rb"(?![0-9A-Za-z])")


def _without_pixels(table: pa.Table) -> pa.Table:
    return table.drop_columns([name for name in ("pixels",) if name in table.column_names])
