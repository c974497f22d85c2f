"""Finds ids that look alike: one person listed under two ids could end up in both training and test."""

import re
import unicodedata
from decimal import Decimal

import pandas as pd

# Form of a number; text with a longer exponent is no number.
_NUMBER = re.compile(r"[+-]?\d+(?:\.\d*)?(?:e[+-]?\d{1,2})?")
# Invisible characters: Unicode default ignorables outside the categories Cc and Cf.
_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2065\u3164\ufe00-\ufe0f\uffa0\ufff0-\ufff8\U000e0000-\U000e0fff]"
)

# Look-alikes listed for one id.
MAX_LISTED = 5


def comparable_ids(ids: "pd.Series[str]") -> "pd.Series[str]":
    """Normalize ids by removing differences that people overlook; ids with equal results may be one person.

    Ignored are the notation of numbers (7, 007, 7.0, 7e0), case, blanks at the ends, invisible characters, and
    Unicode compatibility variants (full-width digits, ligatures).
    """
    codes, distinct = pd.factorize(ids)
    return pd.Series([_comparable(text) for text in distinct], dtype="str").take(codes).set_axis(ids.index)


def _comparable(text: str) -> str:
    if not text.isascii():
        text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
        text = _INVISIBLE.sub("", text)
    if not text.isprintable():
        text = "".join(letter for letter in text if unicodedata.category(letter) not in ("Cc", "Cf"))
    # Once invisible characters are removed, letters and accents may combine.
    text = " ".join(unicodedata.normalize("NFKC", text).lower().split())
    if not _NUMBER.fullmatch(text):
        return text
    number = f"{Decimal(text):f}"
    number = number.rstrip("0").rstrip(".") if "." in number else number
    return "0" if number == "-0" else number


def lookalikes(ids: "pd.Series[str]") -> "pd.Series[str]":
    """For each row, its id and the ids that `comparable_ids` makes equal to it, in quotes; null where there is none."""
    distinct = ids.drop_duplicates()
    keys = comparable_ids(distinct)
    alike = distinct[keys.duplicated(keep=False)]
    shown: dict[str, str] = {}
    for _, group in alike.groupby(keys[alike.index]):
        names = sorted(group)
        for name in names:
            others = [repr(alias) for alias in names[: MAX_LISTED + 1] if alias != name][:MAX_LISTED]
            shown[name] = f"{name!r} and {', '.join(others)}"
    return ids.map(shown).astype("str") if shown else pd.Series(None, index=ids.index, dtype="str")
