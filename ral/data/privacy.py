"""Pseudonymizes ids by keyed hashes: without the salt, prepared data cannot be linked to hospital records."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pandas as pd

from ral.config.data import DataConfig
from ral.data.validation.result import Check, Sample
from ral.errors import UserError
from ral.labels import PHANTOM_PREFIX

# A shorter salt would be open to brute force.
MIN_SALT_BYTES = 16
# Length of a pseudonym: the probability of a collision among 10^8 ids is below 10^-22.
DIGEST_BYTES = 16


def read_salt(path: Path, key: str = "data.pseudonymise") -> bytes:
    """Read the salt file; store it apart from the data, and use one salt for all deliveries of a data set.

    Args:
        path: the file.
        key: the parameter that names it, for messages.

    Raises:
        UserError: the file is missing or too short.
    """
    try:
        salt = path.read_bytes()
    except FileNotFoundError:
        raise UserError(
            f"The salt file {path} ({key}) does not exist. Create one: head -c 32 /dev/urandom > {path}"
        ) from None
    if len(salt) < MIN_SALT_BYTES:
        raise UserError(
            f"The salt in {path} has {len(salt)} bytes; it needs at least {MIN_SALT_BYTES} random bytes."
        )
    return hashlib.blake2b(salt).digest()


def pseudonyms(ids: pd.Series, salt: bytes) -> pd.Series:
    """A keyed hash (BLAKE2b, 32 hexadecimal digits) of each id; phantom ids keep their prefix."""
    codes, distinct = pd.factorize(ids)
    hashed = [
        (PHANTOM_PREFIX if text.startswith(PHANTOM_PREFIX) else "")
        + hashlib.blake2b(text.encode(), key=salt, digest_size=DIGEST_BYTES).hexdigest()
        for text in distinct
    ]
    return pd.Series(hashed, dtype="str").take(codes).set_axis(ids.index)


def pseudonymize(table: pd.DataFrame, salt: bytes) -> pd.DataFrame:
    """Replace image, patient and study ids by pseudonyms and blank file names; returns a copy."""
    table = table.copy()
    for name in ("image_id", "patient_id", "study_id"):
        if name in table:
            table[name] = pseudonyms(table[name], salt)
    for name in ("path", "member"):
        if name in table:
            table[name] = ""
    return table


@dataclass(frozen=True)
class Pseudonymizer:
    """Replaces ids by pseudonyms; without a salt it leaves them as they are.

    Attributes:
        salt: content of the salt file (`read_salt`), or None.
    """

    salt: bytes | None

    @classmethod
    def of(cls, config: DataConfig, folder: Path = Path()) -> Self:
        """With the salt of `data.pseudonymise`.

        Args:
            config: the section data.
            folder: project folder, to which the path is relative.

        Raises:
            UserError: the salt file is missing or too short.
        """
        return cls(read_salt(folder / config.pseudonymise) if config.pseudonymise else None)

    def ids(self, ids: pd.Series) -> pd.Series:
        """Pseudonyms of ids (`pseudonyms`)."""
        return pseudonyms(ids, self.salt) if self.salt else ids

    def table(self, table: pd.DataFrame) -> pd.DataFrame:
        """A table with pseudonyms and without file names (`pseudonymize`)."""
        return pseudonymize(table, self.salt) if self.salt else table


NO_PSEUDONYMS = Pseudonymizer(None)


def redact_samples(checks: Sequence[Check], salt: bytes) -> list[Check]:
    """Replace the image ids of sample rows by pseudonyms and remove their values; row numbers stay."""

    def redact(sample: Sample) -> Sample:
        image_id = pseudonyms(pd.Series([sample.image_id], dtype="str"), salt).iloc[0]
        return sample.model_copy(update={"image_id": image_id, "value": None})

    return [
        check.model_copy(update={"samples": [redact(sample) for sample in check.samples]}) for check in checks
    ]
