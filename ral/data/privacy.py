"""Pseudonyms: ids as keyed hashes, so that prepared data cannot be joined with the hospital's without the salt."""

import hashlib
from pathlib import Path
from typing import Any

import pandas as pd

from ral.errors import UserError
from ral.labels import PHANTOM_PREFIX

# Bytes of a salt below which its hashes could be undone by trying.
LEAST = 16
# Bytes of a pseudonym: among 10^8 ids two would meet with a chance below 10^-22.
DIGEST = 16


def read_salt(path: Path) -> bytes:
    """The salt in a file; keep it apart from the data, and use one salt for all deliveries of a data set.

    Raises:
        UserError: the file is missing or too short.
    """
    try:
        salt = path.read_bytes()
    except FileNotFoundError:
        raise UserError(
            f"The salt file {path} (data.pseudonymise) does not exist. Make one: head -c 32 /dev/urandom > {path}"
        ) from None
    if len(salt) < LEAST:
        raise UserError(
            f"The salt in {path} has {len(salt)} bytes; it needs at least {LEAST}, drawn at random."
        )
    return hashlib.blake2b(salt).digest()


def pseudonyms(ids: pd.Series, salt: bytes) -> pd.Series:
    """A keyed hash (BLAKE2b, 32 hexadecimal digits) of each id; a phantom's keeps the mark that it is one."""
    codes, distinct = pd.factorize(ids)
    made = [
        (PHANTOM_PREFIX if text.startswith(PHANTOM_PREFIX) else "")
        + hashlib.blake2b(text.encode(), key=salt, digest_size=DIGEST).hexdigest()
        for text in distinct
    ]
    return pd.Series(made, dtype="str").take(codes).set_axis(ids.index)


def pseudonymised(table: pd.DataFrame, salt: bytes) -> pd.DataFrame:
    """A table whose image, patient and study ids are pseudonyms, and whose file names are left out."""
    table = table.copy()
    for name in ("image_id", "patient_id", "study_id"):
        if name in table:
            table[name] = pseudonyms(table[name], salt)
    for name in ("path", "member"):
        if name in table:
            table[name] = ""
    return table


def redact_samples(checks: list[dict[str, Any]], salt: bytes) -> list[dict[str, Any]]:
    """A validation's checks with the sample rows' ids as pseudonyms and without their cells; the row numbers stay."""

    def veil(sample: dict[str, Any]) -> dict[str, Any]:
        image_id = pseudonyms(pd.Series([sample["image_id"]], dtype="str"), salt).iloc[0]
        return sample | {"image_id": image_id, "value": None}

    return [check | {"samples": [veil(sample) for sample in check["samples"]]} for check in checks]
