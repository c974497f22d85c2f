"""The one exception whose text is meant for the person who runs the pipeline."""

from typing import Literal

# What failed, as runs/<id>/failure.json names it.
Kind = Literal["input", "memory", "not_finite", "lost_process", "queue", "interrupted", "disk", "bug"]


class UserError(Exception):
    """Something the user can mend: bad input, a bad parameter, an unwritable place.

    The message says what is wrong, where (file, row, key) and what to do. The edge of a step
    (`tasks.step`) prints it without a traceback and exits with 1; anything else is a bug and keeps its trace.

    Args:
        message: for people.
        kind: for programs.
        retry: whether the same command may succeed later (a lost machine, a full queue).
    """

    def __init__(self, message: str, kind: Kind = "input", retry: bool = False) -> None:
        super().__init__(message)
        self.kind, self.retry = kind, retry
