"""Ids that look alike: one person under two of them would both train and test."""

import re
import unicodedata
from decimal import Decimal

import pandas as pd

# What a number looks like; longer exponents would be words.
_NUMBER = re.compile(r"[+-]?\d+(?:\.\d*)?(?:e[+-]?\d{1,2})?")
# Characters that no screen shows: of Unicode's categories Cc and Cf, and those that it calls default ignorable.
_INVISIBLE = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0]")


def comparable_ids(ids: "pd.Series[str]") -> "pd.Series[str]":
    """What is left of ids once everything is taken away that people overlook; equal results may be one person.

    Ids are equal as numbers (7, 007, 7.0, 7e0), but for case, for blanks at the ends, or for characters that are
    invisible or that Unicode calls compatible (full-width digits, ligatures).
    """
    codes, distinct = pd.factorize(ids)
    return pd.Series([_comparable(text) for text in distinct], dtype="str").take(codes).set_axis(ids.index)


def _comparable(text: str) -> str:
    if not text.isascii():
        text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
        text = _INVISIBLE.sub("", text)
    text = "".join(letter for letter in text if unicodedata.category(letter) not in ("Cc", "Cf"))
    text = " ".join(text.lower().split())
    if not _NUMBER.fullmatch(text):
        return text
    number = f"{Decimal(text):f}"
    return number.rstrip("0").rstrip(".") if "." in number else number


def lookalikes(ids: "pd.Series[str]") -> "pd.Series[str]":
    """For each row the other ids that `comparable_ids` makes equal to its own, in quotes; null where there is none."""
    distinct = ids.drop_duplicates()
    keys = comparable_ids(distinct)
    alike = distinct[keys.duplicated(keep=False)]
    shown: dict[str, str] = {}
    for _, group in alike.groupby(keys[alike.index]):
        names = sorted(group)
        for name in names:
            shown[name] = f"{name!r} and " + ", ".join(repr(other) for other in names if other != name)
    return ids.map(shown).astype("str") if shown else pd.Series(None, index=ids.index, dtype="str")
