"""Sentences and number formats that the report and the summary share."""

import math
import re
from collections.abc import Mapping
from typing import Any, TypeGuard

PHANTOM = "PHANTOM IMAGES – drawn by a program, not X-rays of people. Nothing here is a clinical result."
PHANTOM_SHORT = "PHANTOM IMAGES: drawn, not X-rays of people; these figures say nothing about clinical use"
RESEARCH = "Research software, not a medical device"

# Stands where a value is missing: never a zero, never an empty cell.
NOT_ESTIMABLE = "not estimable"


# What would be HTML, a formula, or a link in Markdown.
ENTITIES = {character: f"&#{ord(character)};" for character in "&<>\"'$@"}


def escape(value: str) -> str:
    """Text from data as Markdown that shows it as it is, on one line."""
    line = " ".join("".join(c if c.isprintable() else " " for c in value).split())
    line = re.sub(r"[\\`*_\[\]|~!#{}]", lambda found: f"\\{found[0]}", line)
    line = "".join(ENTITIES.get(character, character) for character in line)
    # Addresses would become links.
    return re.sub(
        r"://|www\.", lambda found: found[0].replace(":", "&#58;").replace(".", "&#46;"), line, flags=re.I
    )


def known(value: float | None) -> TypeGuard[float]:
    """Whether there is a value: missing is null in JSON and NaN in a table."""
    return value is not None and math.isfinite(value)


def number(value: float | None, decimals: int = 3) -> str:
    """A metric, or that there is none; never a negative zero."""
    return f"{value:z.{decimals}f}" if known(value) else NOT_ESTIMABLE


def interval(low: float | None, high: float | None) -> str:
    """The two ends of an interval; `-0.100 to 0.200` where one is negative, since a dash would read as a sign."""
    if not (known(low) and known(high)):
        return "no interval"
    ends = number(low), number(high)
    return (" to " if any(end.startswith("-") for end in ends) else "–").join(ends)


def with_interval(value: float | None, low: float | None, high: float | None) -> str:
    """A metric and its interval as `0.412 (0.380–0.451)`."""
    return f"{number(value)} ({interval(low, high)})" if known(value) else NOT_ESTIMABLE


def signed(value: float) -> str:
    """A difference with its sign; one that is 0 as far as it is shown is +0.000."""
    return f"{value:+z.3f}"


def signed_interval(low: float | None, high: float | None) -> str:
    """The two ends of the interval of a difference."""
    return f"{signed(low)} to {signed(high)}" if known(low) and known(high) else "no interval"


def p_value(value: float | None) -> str:
    """A p value, which is never 0; none where nothing was tested."""
    if not known(value):
        return "none"
    return f"{value:.3f}" if value >= 0.001 else "<0.001"


def estimate(content: dict[str, Any]) -> str:
    """The same for an entry of metrics.json."""
    return with_interval(content["value"], content["low"], content["high"])


def percent(share: float | None) -> str:
    """A share as a percentage with three digits, so that rare findings keep some."""
    if not known(share):
        return NOT_ESTIMABLE
    decimals = 1 if share >= 0.1 else 2 if share >= 0.01 or share == 0 else 3
    return f"{100 * share:.{decimals}f} %"


def pluralize(count: int, one: str, several: str) -> str:
    """A count and its noun."""
    return f"{count:,} {one if count == 1 else several}"


def sealed(test: Mapping[str, int]) -> str:
    """A sentence on the test patients that no figure shows; empty if there are none.

    Args:
        test: of metrics.json.
    """
    count = test.get("sealed_patients", 0)
    return (
        f"{pluralize(count, 'further test patient is', 'further test patients are')} sealed." if count else ""
    )
