"""The one exception whose text is meant for the person who runs the pipeline."""


class UserError(Exception):
    """Something the user can mend: bad input, a bad parameter, an unwritable place.

    The message says what is wrong, where (file, row, key) and what to do. The edge of a step
    (`tasks.step`) prints it without a traceback and exits with 1; anything else is a bug and keeps its trace.
    """
