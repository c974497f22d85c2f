"""The one exception whose text is meant for the person who runs the pipeline."""

import re
from typing import Literal

# What failed, as runs/<id>/failure.json names it.
Kind = Literal["input", "memory", "not_finite", "lost_process", "queue", "interrupted", "disk", "bug"]


# User and password in an address (`https://user:token@host/`); a password may hold a slash that should have been quoted.
_ADDRESS = re.compile(
    r"(\b[a-z][a-z0-9+.-]{0,30}://)((?:[^\s/?#]*|[^\s/?#:@]*:(?!\d*(?:[/?#'\"\s]|$))\S*))@", re.IGNORECASE
)

# The same as a part of an address's query (`?private_token=…`, Azure's `&sig=…`).
_QUERY = re.compile(r"([?&][\w.-]*(?:token|secret|password|key|sig|signature)=)[^&#\s'\"]+", re.IGNORECASE)

# What a terminal obeys (but for new lines and tabs), and what turns the direction of writing.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def plain(text: str) -> str:
    """Text as it may be shown and kept: addresses without passwords, control characters as escapes.

    Messages quote addresses of repositories, which may hold a token, and cells of tables, which may hold anything.
    """
    text = _QUERY.sub(r"\1***", _ADDRESS.sub(_without_secret, text))
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


def _without_secret(found: re.Match) -> str:
    scheme, user = found.groups()
    # The user of `ssh://git@host` is no secret, and without it the address is another one.
    return found[0] if scheme.lower().endswith("ssh://") and ":" not in user else scheme


class UserError(Exception):
    """Something the user can mend: bad input, a bad parameter, an unwritable place.

    The message says what is wrong, where (file, row, key) and what to do; it is made `plain`. The edge of a step
    (`tasks.step`) prints it without a traceback and exits with 1; anything else is a bug and keeps its trace.

    Args:
        message: for people.
        kind: for programs.
        retry: whether the same command may succeed later (a lost machine, a full queue).
    """

    def __init__(self, message: str, kind: Kind = "input", retry: bool = False) -> None:
        super().__init__(plain(message))
        self.kind, self.retry = kind, retry
