"""The allowed names nearest to a misspelt one, for error messages."""

import difflib
from collections.abc import Iterable

# Similarity from 0 to 1 (`difflib.SequenceMatcher.ratio`) below which a name is not suggested.
SIMILAR = 0.6


def nearest(name: str, allowed: Iterable[str], count: int = 1, similar: float = SIMILAR) -> list[str]:
    """The allowed names most similar to `name`, nearest first, at most `count`.

    Case does not matter, nor whether words are separated by underscores or spaces.

    Args:
        name: the name that is not allowed.
        allowed: the names to choose from.
        count: maximum number of names.
        similar: minimum similarity, from 0 to 1.
    """
    folded: dict[str, str] = {}
    for candidate in allowed:
        folded.setdefault(_fold(candidate), candidate)
    return [folded[match] for match in difflib.get_close_matches(_fold(name), folded, count, similar)]


def did_you_mean(name: str, allowed: Iterable[str], similar: float = SIMILAR) -> str:
    """A sentence with the nearest allowed name, after a space: " Did you mean `Mass`?"; "" if none is similar."""
    return "".join(f" Did you mean `{match}`?" for match in nearest(name, allowed, similar=similar))


def _fold(name: str) -> str:
    return name.casefold().replace("_", " ")
