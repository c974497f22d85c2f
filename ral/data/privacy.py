"""Pseudonymizes ids by keyed hashes: without the salt, prepared data cannot be linked to hospital records."""

import hashlib
from pathlib import Path
from typing import Any

import pandas as pd

from ral.errors import UserError
from ral.labels import PHANTOM_PREFIX

# A shorter salt would be open to brute force.
MIN_SALT_BYTES = 16
# Length of a pseudonym: the probability of a collision among 10^8 ids is below 10^-22.
DIGEST_BYTES = 16


def read_salt(path: Path) -> bytes:
    """Read the salt file; store it apart from the data, and use one salt for all deliveries of a data set.

    Raises:
        UserError: the file is missing or too short.
    """
    try:
        salt = path.read_bytes()
    except FileNotFoundError:
        raise UserError(
            f"The salt file {path} (data.pseudonymise) does not exist. Create one: head -c 32 /dev/urandom > {path}"
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


def redact_samples(checks: list[dict[str, Any]], salt: bytes) -> list[dict[str, Any]]:
    """Replace the image ids of sample rows by pseudonyms and remove their values; row numbers stay."""

    def redact(sample: dict[str, Any]) -> dict[str, Any]:
        image_id = pseudonyms(pd.Series([sample["image_id"]], dtype="str"), salt).iloc[0]
        return sample | {"image_id": image_id, "value": None}

    return [check | {"samples": [redact(sample) for sample in check["samples"]]} for check in checks]
