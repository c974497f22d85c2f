"""Number formats and sentences shared by reports, command output and flows."""

import math
import re
from typing import TypeGuard

from ral.labels import PHANTOM_DATA

# Banner of a report or card, footer of its printed pages, and notice in the output of a command.
PHANTOM = (
    f"{PHANTOM_DATA} – synthetic images drawn by a program, not patients. Nothing here has clinical meaning."
)
PHANTOM_FOOTER = f"{PHANTOM_DATA} – synthetic images, not patients. Nothing here has clinical meaning."
PHANTOM_SHORT = f"{PHANTOM_DATA}: synthetic images, not patients. These metrics have no clinical meaning."
RESEARCH = "Research software, not a medical device"
# The same inside a sentence or a file.
RESEARCH_NOTE = RESEARCH.lower()

# Shown for a missing value, instead of a zero or an empty cell.
NOT_ESTIMABLE = "not estimable"


def notice(phantom: bool) -> str:
    """The line above metrics: of phantom images, or of research software."""
    return PHANTOM_SHORT if phantom else RESEARCH


def notice_sentence(phantom: bool) -> str:
    """The same within a text."""
    return PHANTOM_SHORT if phantom else f"{RESEARCH}."


# Characters that start HTML, a formula or a link in Markdown.
ENTITIES = {character: f"&#{ord(character)};" for character in "&<>\"'$@"}


def escape(value: str) -> str:
    """Escape text from data for Markdown, on one line."""
    line = " ".join("".join(c if c.isprintable() else " " for c in value).split())
    line = re.sub(r"[\\`*_\[\]|~!#{}]", lambda match: f"\\{match[0]}", line)
    line = "".join(ENTITIES.get(character, character) for character in line)
    # Prevents URLs from becoming links.
    return re.sub(
        r"://|www\.", lambda match: match[0].replace(":", "&#58;").replace(".", "&#46;"), line, flags=re.I
    )


def known(value: float | None) -> TypeGuard[float]:
    """Whether there is a value; a missing one is null in JSON and NaN in a table."""
    return value is not None and math.isfinite(value)


def number(value: float | None, decimals: int = 3) -> str:
    """Format a metric, or NOT_ESTIMABLE; never a negative zero."""
    return f"{value:z.{decimals}f}" if known(value) else NOT_ESTIMABLE


def interval(low: float | None, high: float | None, decimals: int = 3) -> str:
    """Format an interval: `0.380–0.451`, or `-0.100 to 0.200` if an end is negative (a dash would read as a sign)."""
    if not (known(low) and known(high)):
        return "no interval"
    ends = number(low, decimals), number(high, decimals)
    return (" to " if any(end.startswith("-") for end in ends) else "–").join(ends)


def with_interval(value: float | None, low: float | None, high: float | None, decimals: int = 3) -> str:
    """Format a metric with its interval: `0.412 (0.380–0.451)`."""
    if not known(value):
        return NOT_ESTIMABLE
    return f"{number(value, decimals)} ({interval(low, high, decimals)})"


def signed(value: float) -> str:
    """Format a difference with its sign; one that rounds to 0 is +0.000."""
    return f"{value:+z.3f}"


def signed_interval(low: float | None, high: float | None) -> str:
    """Format the interval of a difference."""
    return f"{signed(low)} to {signed(high)}" if known(low) and known(high) else "no interval"


def difference(value: float | None, low: float | None, high: float | None) -> str:
    """Format a difference with its interval: `+0.010 (-0.004 to +0.025)`."""
    return f"{signed(value)} ({signed_interval(low, high)})" if known(value) else NOT_ESTIMABLE


def p_value(value: float | None) -> str:
    """Format a p value, which is never shown as 0; `none` if nothing was tested."""
    if not known(value):
        return "none"
    return f"{value:.3f}" if value >= 0.001 else "<0.001"


def percent(share: float | None) -> str:
    """Format a share as a percentage with about three significant digits."""
    if not known(share):
        return NOT_ESTIMABLE
    decimals = 1 if share >= 0.1 else 2 if share >= 0.01 or share == 0 else 3
    return f"{100 * share:.{decimals}f} %"


def pluralize(count: int, one: str, several: str) -> str:
    """A count followed by the singular or plural noun."""
    return f"{count:,} {one if count == 1 else several}"


def sealed(patients: int) -> str:
    """A sentence about the sealed test patients, who are in no metric; empty if there are none."""
    if not patients:
        return ""
    return f"{pluralize(patients, 'further test patient is', 'further test patients are')} sealed."
