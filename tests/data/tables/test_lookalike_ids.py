"""Patient ids that look alike, held to members of each kind."""

import pandas as pd
import pytest

from ral.data.tables.lookalike_ids import comparable_ids, lookalikes


def series(*ids: str) -> "pd.Series[str]":
    return pd.Series(ids, dtype="str")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("7", "007"),
        ("7", "7.0"),
        ("7", "7."),
        ("100000", "1e5"),
        ("100000", "1E+5"),
        ("7", "+7"),
        ("1234567890123456789012345678901234567890", "01234567890123456789012345678901234567890"),
        ("P7", "p7"),
        ("straße", "STRASSE"),
        ("P7", " P7"),
        ("P7", "P7\t"),
        ("P7", "P\u200b7"),
        ("P7", "\ufeffP7"),
        ("P7", "P\u00ad7"),
        ("P 7", "P\u00a07"),
        ("P7", "P\uff17"),
        ("7", "\u0667"),
        ("\u00c4 1", "A\u0308 1"),
        ("fi1", "\ufb011"),
        ("P7", "P7\ufe0f"),
        ("P7", "P\U000e01007"),
        ("0", "-0"),
        ("\u00e9", "e\u034f\u0301"),
    ],
)
def test_ids_that_people_take_for_one(first: str, second: str) -> None:
    keys = comparable_ids(series(first, second))
    assert keys[0] == keys[1]
    assert lookalikes(series(first, second, "other", first)).tolist() == [
        f"{first!r} and {second!r}",
        f"{second!r} and {first!r}",
        pytest.approx(float("nan"), nan_ok=True),
        f"{first!r} and {second!r}",
    ]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("7", "70"),
        ("7", "-7"),
        ("7", "7.5"),
        ("P7", "P07"),
        ("P7", "P 7"),
        ("1e5", "1e6"),
        ("12345678901234567890", "12345678901234567891"),
        ("a1e200", "a1e201"),
        ("Müller", "Muller"),
        ("", "0"),
    ],
)
def test_ids_of_two_people(first: str, second: str) -> None:
    keys = comparable_ids(series(first, second))
    assert keys[0] != keys[1]
    assert lookalikes(series(first, second)).isna().all()
