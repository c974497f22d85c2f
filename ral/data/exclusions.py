"""The patients of `data.exclude_patients`, who must be in no output: read the file, and find them in a table.

A line of the file is a patient id as the label table has it or, with `data.exclude_salt`, its keyed hash: BLAKE2b of
the id in UTF-8 with 16 bytes of output, as 32 lower-case hexadecimal digits; the key is the 64 bytes of BLAKE2b of the
salt file. This is the hash of `data.pseudonymise` (`ral.data.privacy.pseudonyms`). No message shows an id or a hash.
"""

import hashlib
import logging
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ral.config.data import DataConfig
from ral.data.privacy import Pseudonymizer, pseudonyms, read_salt
from ral.errors import UserError
from ral.files import atomic_write, private_file
from ral.labels import PHANTOM_PREFIX

logger = logging.getLogger(__name__)

_HASH = re.compile(rf"(?:{PHANTOM_PREFIX})?[0-9a-f]{{32}}")


@dataclass(frozen=True)
class Exclusions:
    """Patients to exclude; none by default.

    Attributes:
        entries: ids or, with a salt, keyed hashes of them.
        salt: content of `data.exclude_salt` (`read_salt`), or None.
        sha256: of the file, with a salt of its key and the file; None without a file.
        only: select these patients instead of all others (`inverted`).
    """

    entries: frozenset[str] = field(default=frozenset(), repr=False)
    salt: bytes | None = field(default=None, repr=False)
    sha256: str | None = None
    only: bool = False

    @classmethod
    def of(cls, config: DataConfig, folder: Path = Path()) -> Self:
        """The patients of `data.exclude_patients`.

        Args:
            config: the section data.
            folder: project folder, to which paths in it are relative.

        Raises:
            UserError: a file is missing or invalid, or two salts are not the same.
        """
        if config.exclude_patients is None:
            return cls()
        salt = read_salt(folder / config.exclude_salt, "data.exclude_salt") if config.exclude_salt else None
        if salt and config.pseudonymise and read_salt(folder / config.pseudonymise) != salt:
            raise UserError(
                "data.exclude_salt and data.pseudonymise are different salts, so excluded patients cannot be "
                "recognized among pseudonyms. Use one salt file for both, or list plain ids without data.exclude_salt."
            )
        content = _read(folder / config.exclude_patients, "data.exclude_patients")
        entries = _lines(content, folder / config.exclude_patients, hashed=salt is not None)
        # Another salt makes other patients of the same lines.
        return cls(frozenset(entries), salt, hashlib.sha256((salt or b"") + content).hexdigest())

    def __bool__(self) -> bool:
        return bool(self.entries)

    @property
    def inverted(self) -> Self:
        """The same patients, for an audit of them: `kept` returns their rows and no others."""
        return type(self)(self.entries, self.salt, self.sha256, only=True)

    def keys(self, patients: "pd.Series[str]") -> "pd.Series[str]":
        """Ids of the table as the file would list them."""
        return pseudonyms(patients, self.salt) if self.salt else patients

    def match(self, patients: "pd.Series[str]") -> NDArray[np.bool_]:
        """Which rows of the table are of patients in the file, bool [rows].

        Args:
            patients: patient ids of the table.
        """
        if not self:
            return np.zeros(len(patients), bool)
        return self.keys(patients).isin(self.entries).to_numpy()

    def kept(self, rows: pd.DataFrame, patient: str) -> pd.DataFrame:
        """The rows of a table without those of the patients in the file.

        Args:
            rows: rows of a table.
            patient: column of the patient ids.
        """
        return rows[self.match(rows[patient]) == self.only] if self or self.only else rows

    def match_prepared(self, patients: "pd.Series[str]", pseudonymizer: Pseudonymizer) -> NDArray[np.bool_]:
        """The same for ids of an output, which may be pseudonyms.

        Args:
            patients: patient ids of an output.
            pseudonymizer: that made them.
        """
        if not pseudonymizer.salt:
            return self.match(patients)
        entries: Iterable[str] = self.entries
        if not self.salt:
            entries = pseudonymizer.ids(pd.Series(sorted(self.entries), dtype="str"))
        return patients.isin(set(entries)).to_numpy()


class Excluder:
    """Removes the excluded patients from the chunks of a table, and counts.

    Args:
        exclusions: who.
        patient: column of the patient ids.
        image: column of the image ids.
    """

    def __init__(self, exclusions: Exclusions, patient: str, image: str) -> None:
        self._exclusions, self._patient, self._image = exclusions, patient, image
        self._listed: set[str] = set()
        self._removed: list[pd.Series[str]] = []
        self._kept: list[pd.Series[str]] = []
        self.without_row: int | None = None
        """Images without a row in the table, if `images` has removed them."""

    def chunks(self, chunks: Iterable[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        """The chunks without their rows, those with any left.

        Raises:
            UserError: no row is left.
        """
        for chunk in chunks:
            if not self._exclusions:
                yield chunk
                continue
            removed = self._exclusions.match(chunk[self._patient])
            self._listed |= set(self._exclusions.keys(chunk.loc[removed, self._patient]).unique())
            self._removed.append(chunk.loc[removed, self._image])
            self._kept.append(chunk.loc[~removed, self._image])
            if not removed.all():
                yield chunk[~removed]
        if self._exclusions and not any(map(len, self._kept)):
            raise UserError("data.exclude_patients lists every patient of the table: nobody is left.")

    def images(self, images: pd.DataFrame) -> pd.DataFrame:
        """The images of the kept rows: file names contain ids, so images without a row are removed, too, and counted.

        Args:
            images: rows of `ral.data.images.locate.list_images`.
        """
        if not self._exclusions:
            return images
        kept, removed = (images["image_id"].isin(pd.concat(part)) for part in (self._kept, self._removed))
        self.without_row = int((~kept & ~removed).sum())
        return images[kept & ~removed].reset_index(drop=True)

    def log(self) -> None:
        """Log how many were excluded, without a name."""
        if not self._exclusions:
            if self._exclusions.sha256:
                logger.warning(
                    "data.exclude_patients: the file lists no patient, so nobody is excluded. Check it, or set "
                    "data.exclude_patients to null."
                )
            return
        listed, unknown = len(self._listed), len(self._exclusions.entries - self._listed)
        rows = sum(map(len, self._removed))
        text = f"data.exclude_patients: {listed:,} of {listed + unknown:,} patients are in the table"
        text += f"; {rows:,} rows excluded"
        if unknown:
            logger.warning(
                f"{text}. {unknown:,} {'is' if unknown == 1 else 'are'} not in the table: ids are compared exactly as "
                "the table writes them. Correct those that are misspelt; others do no harm."
            )
        else:
            logger.info(text)


def remove_from_split(path: Path, exclusions: Exclusions, pseudonymizer: Pseudonymizer) -> int:
    """Remove the excluded patients from a split.parquet, if it lists any; returns how many.

    Args:
        path: the file; it may be missing.
        exclusions: the excluded patients.
        pseudonymizer: that made the ids of the file.
    """
    if not exclusions or not path.is_file():
        return 0
    table = pd.read_parquet(path)
    listed = exclusions.match_prepared(table["patient_id"], pseudonymizer)
    if listed.any():
        with atomic_write(path) as draft:
            table[~listed].to_parquet(draft, index=False, compression=None)
    return int(listed.sum())


def _read(path: Path, key: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(
            f"The file {path} ({key}) does not exist. Without it the patients who must be excluded are not known. Put "
            "it there, or correct the path."
        ) from None


def _lines(content: bytes, path: Path, hashed: bool) -> list[str]:
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8. Save it as UTF-8 text, one id per line.") from None
    entries = {number: line.strip() for number, line in enumerate(lines, 1) if line.strip()}
    for number, entry in entries.items():
        if hashed and not _HASH.fullmatch(entry):
            raise UserError(
                f"{path}, line {number}: not a keyed hash (32 lower-case hexadecimal digits), as data.exclude_salt "
                "demands. Make it with python -m ral.data.hash_patients; for plain ids, set data.exclude_salt to null."
            )
    return list(entries.values())


def write_hashes(ids: Path, salt: Path, out: Path) -> int:
    """Write the keyed hashes of the ids in a file, sorted, so that their order says nothing; returns their number.

    Args:
        ids: file with one patient id per line.
        salt: salt file (`data.exclude_salt`).
        out: file to write (`data.exclude_patients`).

    Raises:
        UserError: a file is missing or invalid.
    """
    names = _lines(_read(ids, "IDS"), ids, hashed=False)
    if not names:
        raise UserError(f"{ids} lists no patient. Write one id per line.")
    hashes = sorted(set(pseudonyms(pd.Series(names, dtype="str"), read_salt(salt, "--salt"))))
    with private_file(out) as draft:
        draft.write_text("".join(f"{line}\n" for line in hashes), encoding="utf-8")
    return len(hashes)
